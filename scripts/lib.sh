# What scripts/demo and scripts/test share: Debian packages, Python, the virtual environment. To be sourced.

unset CDPATH
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "Error: $1"
    if [ $# -gt 1 ]; then say "Hint: $2"; fi
    exit 1
}

# Programs of the daemons lie in sbin, which is not on everybody's PATH.
have() { PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

on_debian_as_root() { [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ] && have apt-get; }

# Install the packages of "program=package" arguments whose program is missing. Says so and goes on where it may not.
need_programs() {
    local pair packages=()
    for pair in "$@"; do
        have "${pair%%=*}" || packages+=("${pair#*=}")
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    if ! on_debian_as_root; then
        say "Missing here: ${packages[*]} (as root on Debian this script installs them)"
        return 1
    fi
    install_packages "${packages[@]}"
}

install_packages() (
    say "Installing Debian packages: $*"
    # Their daemons are not to start: the tests start their own. An administrator's own policy stays as it is.
    policy=/usr/sbin/policy-rc.d
    mark='# Made by jobbergate-flows while it installs packages; may be removed.'
    if [ ! -e "$policy" ] || grep -qF "$mark" "$policy"; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    if ! { apt-get -q update && apt-get -qy install --no-install-recommends "$@"; } </dev/null >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        fail "apt-get could not install $*"
    fi
    rm -f "$log"
)

slurm_programs=(
    slurmctld=slurmctld slurmd=slurmd sbatch=slurm-client slurmdbd=slurmdbd munged=munge mariadbd=mariadb-server
)

# Python 3.11 or newer, older than $1 if that is given ("3, 12"); the system's own first, because the pinned versions were
# tried with Debian's.
find_python() {
    local name
    for name in /usr/bin/python3 python3 python3.11 python3.12 python3.13 python3.14; do
        if "$name" -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (${1:-4, 0}))" >/dev/null 2>&1; then
            printf '%s\n' "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer found" "on Debian: apt-get install python3 python3-venv"
}

# An environment that was copied or moved, or whose Python is gone, is no environment.
venv_works() {
    [ -x "$venv/bin/python" ] && "$venv/bin/python" - "$venv" >/dev/null 2>&1 <<'PYTHON'
import pathlib, sys
import pip
sys.exit(sys.version_info < (3, 11) or pathlib.Path(sys.prefix).resolve() != pathlib.Path(sys.argv[1]).resolve())
PYTHON
}

make_venv() {
    local python
    if venv_works; then return; fi
    python=$(find_python "$@")
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        on_debian_as_root || fail "$python has no venv module" "on Debian: apt-get install python3-venv"
        install_packages python3-venv
    fi
    say "Making ${venv#"$root"/} with $("$python" --version)"
    "$python" -m venv --clear "$venv"
}

# Install the package into .venv with these extras ("" or "dev"), unless that was done with the same pins.
install_project() {
    local extras=$1 stamp=$venv/.installed pins
    make_venv
    pins=$(cat "$root/pyproject.toml" "$root/constraints.txt" | sha256sum | cut -d' ' -f1)
    if grep -qxF "$pins $extras" "$stamp" 2>/dev/null || grep -qxF "$pins dev" "$stamp" 2>/dev/null; then return; fi
    say "Installing jobbergate-flows${extras:+ with what its tests need} into .venv"
    rm -f "$stamp"
    # As a variable the pins hold for the build's own requirements too. pip splits it at spaces: a relative path has none.
    (cd "$root" && PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$venv/bin/python" -m pip install --quiet --no-input --editable ".${extras:+[$extras]}" </dev/null >&2)
    printf '%s %s\n' "$pins" "$extras" >"$stamp"
}

# Install packages into an environment of their own within that of the tests, which find it there: .venv/NAME, pinned by
# constraints-NAME.txt. Says so and goes on where it cannot be had.
#   install_beside NAME 'what it is, in words' 'newest Python that it may not have' PACKAGE...
install_beside() (
    name=$1 what=$2 before=$3
    shift 3
    venv=$venv/$name
    pins=$(sha256sum <"$root/constraints-$name.txt")
    # In a shell of its own, which it ends where there is none.
    if [ ! -x "$venv/bin/python" ] && ! (find_python "$before") >/dev/null 2>&1; then
        say "Missing here: Python from 3.11 to below ${before/, /.}, for $what"
        return 1
    fi
    make_venv "$before" || return
    if grep -qxF "$pins" "$venv/.installed" 2>/dev/null; then return; fi
    say "Installing $what into ${venv#"$root"/}"
    rm -f "$venv/.installed"
    cd "$root" || return
    PIP_CONSTRAINT=constraints-$name.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$venv/bin/python" -m pip install --quiet --no-input "$@" </dev/null >&2 || return
    printf '%s\n' "$pins" >"$venv/.installed"
)

# The real Jobbergate API and an S3 server for it. Its FastAPI is not Prefect's, and some of what it needs has no wheels
# for newer Pythons.
install_jobbergate_api() { install_beside jobbergate-api 'the Jobbergate API' '3, 12' jobbergate-api 'moto[s3,server]'; }

# The released command line of Jobbergate, as a user has it.
install_jobbergate_cli() { install_beside jobbergate-cli 'the Jobbergate CLI' '4, 0' jobbergate-cli; }

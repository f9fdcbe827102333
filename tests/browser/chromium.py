"""A headless Chromium of its own, and Prefect's pages in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from tests.cluster.guard import guard
from tests.cluster.waiting import wait_until

T = TypeVar("T")

WIDTH = 1400
_PATIENCE = 60
_PROGRAMS = ("chromium", "chromedriver")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",
    f"--window-size={WIDTH},2000",
)


def missing() -> list[str]:
    return [program for program in _PROGRAMS if not shutil.which(program)]


class Chromium:
    """`with Chromium(folder) as browser: ...`; its profile is in the folder."""

    def __init__(self, folder: Path) -> None:
        chromium, chromedriver = (shutil.which(program) or program for program in _PROGRAMS)
        options = ChromeOptions()
        options.binary_location = chromium
        for flag in (*_FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        self._service = ChromeService(chromedriver, popen_kw={"start_new_session": True})
        self.driver = Chrome(options, self._service)
        guard.watch("process", str(self._service.process.pid))

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *error: object) -> None:
        leader = self._service.process.pid
        self.driver.quit()
        guard.forget("process", str(leader))

    def open(self, address: str, *shown: str) -> str:
        """Open a page and wait until it shows these texts; its text is returned."""
        self.driver.get(address)
        return self.wait_for_text(*shown)

    def wait_for_text(self, *shown: str, timeout: float = _PATIENCE) -> str:
        def page() -> str:
            text = self.text()
            return text if all(part in text for part in shown) else ""

        try:
            return wait_until(page, timeout, f"a page that shows {shown}")
        except TimeoutError as error:
            raise AssertionError(f"{error}; {self.driver.current_url} shows:\n{self.text()}") from error

    def press(self, words: str) -> None:
        """Click on what has these words and no others."""
        path = f"//body//*[normalize-space()='{words}']"
        wait_until(lambda: self.driver.find_elements(By.XPATH, path), _PATIENCE, repr(words))[-1].click()

    def text(self) -> str:
        return str(self.driver.execute_script("return document.body ? document.body.innerText : ''"))

    def screenshot(self, path: Path, height: int) -> None:
        """A picture of the window from its top, this many pixels high."""
        self.driver.set_window_size(WIDTH, height)
        self.driver.execute_script("document.querySelectorAll('*').forEach(part => { part.scrollTop = 0 })")
        self.driver.save_screenshot(str(path))
        self.driver.set_window_size(WIDTH, 2000)

    def form(self, deployment: object, server: str) -> Form:
        """The form of a deployment, filled with its defaults."""
        self.open(f"{server}/deployments/deployment/{deployment}/run", "Parameters", "Validate parameters")
        # Its fields come one after the other, and not in their order.
        seen: list[str] = []

        def still() -> bool:
            seen.append(self.text())
            return len(seen) > 5 and len(set(seen[-5:])) == 1

        wait_until(still, _PATIENCE, "the form to stand still", 0.2)
        return Form(self)


@dataclass(frozen=True)
class Question:
    """A field of the form as people see it; a group has `titles` of its own fields instead of a value."""

    title: str
    optional: bool
    description: str
    value: str | bool | None
    choices: tuple[str, ...]
    fixed: bool
    titles: tuple[str, ...] = field(default=())


_READ = """
const own = (part, what) => part.querySelector(`:scope > .p-label__header ${what}`)
const title = part => own(part, '.schema-form-property__label').innerText
const inner = part => [...part.querySelectorAll('.schema-form-property')].filter(
    each => each.parentElement.closest('.schema-form-property') === part)
const top = [...document.querySelectorAll('.schema-form-property')].filter(
    each => !each.parentElement.closest('.schema-form-property'))
const found = arguments[0].reduce(
    (parts, wanted) => parts.filter(part => title(part).replace(' (Optional)', '') === wanted).flatMap(
        part => wanted === arguments[0].at(-1) ? [part] : inner(part)), arguments[0].length ? top : [])
if (!arguments[0].length) return top.map(title)
const part = found[0]
if (!part) return null
const body = part.querySelector(':scope > .p-label__body')
const control = body.querySelector('select, input, textarea, .cm-content')
const text = own(part, '.schema-form-property__description')
const parts = inner(part)
return {
    part, control, title: title(part), description: text ? text.innerText : '', titles: parts.map(title),
    value: parts.length || !control ? null : control.type === 'checkbox' ? control.checked
        : control.value ?? control.innerText,
    choices: control && control.tagName === 'SELECT' ? [...control.options].map(option => option.innerText) : [],
    fixed: body.querySelector('fieldset').disabled,
}
"""
"""The top fields' titles, or the field at a path of titles."""


class Form:
    """The form in which a run of a deployment is started."""

    def __init__(self, browser: Chromium) -> None:
        self._browser = browser
        self._driver = browser.driver

    def titles(self) -> list[str]:
        """The titles of the outermost fields, from the top."""
        return [_bare(title) for title in self._driver.execute_script(_READ, [])]

    def question(self, *path: str) -> Question:
        """The field with this title, or with these from the outermost group on."""
        found = self._find(path)
        return Question(
            _bare(found["title"]),
            found["title"] != _bare(found["title"]),
            found["description"].strip(),
            found["value"],
            tuple(found["choices"]),
            found["fixed"],
            tuple(_bare(title) for title in found["titles"]),
        )

    def fill(self, *path: str, value: str) -> None:
        """Type a value in place of what is there; an empty one clears the field."""
        control = self._control(path)
        # The modifier is held until the end of a call.
        control.send_keys(Keys.CONTROL + "a")
        control.send_keys(Keys.DELETE + value + Keys.TAB)
        wait_until(lambda: self.question(*path).value == value, _PATIENCE, f"{value!r} in the field {path}")

    def choose(self, *path: str, choice: str) -> None:
        """Take a choice of a list."""
        control = self._control(path)
        Select(control).select_by_visible_text(choice)
        wait_until(lambda: self.question(*path).value == choice, _PATIENCE, f"{choice!r} in the field {path}")

    def switch(self, *path: str) -> None:
        """Turn a yes into a no, or a no into a yes."""
        was = self.question(*path).value
        self._click(self._find(path)["part"].find_element(By.CSS_SELECTOR, ".p-toggle__control"))
        wait_until(lambda: self.question(*path).value is not was, _PATIENCE, f"the switch {path} to turn")

    def submit(self) -> str:
        """Press Submit; what the page then says, in a toast or beside a field."""
        self._click(self._driver.find_element(By.XPATH, "//button[normalize-space()='Submit']"))

        def said() -> str:
            shown = self._driver.find_elements(By.CSS_SELECTOR, ".p-toast__message, .p-label__message--failed")
            return "\n".join(each.text for each in shown).strip()

        return self._present(said, "an answer to Submit")

    def _find(self, path: Sequence[str]) -> dict[str, Any]:
        return wait_until(lambda: self._driver.execute_script(_READ, list(path)), _PATIENCE, f"the field {path}")

    def _control(self, path: Sequence[str]) -> WebElement:
        control = self._find(path)["control"]
        assert isinstance(control, WebElement)
        self._driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", control)
        return control

    def _click(self, part: WebElement) -> None:
        self._driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", part)
        part.click()

    def _present(self, look: Callable[[], T | None], what: str) -> T:
        def there() -> T | None:
            try:
                return look()
            except StaleElementReferenceException:
                return None

        found = wait_until(there, _PATIENCE, what)
        assert found is not None
        return found


def _bare(title: str) -> str:
    return title.removesuffix(" (Optional)")

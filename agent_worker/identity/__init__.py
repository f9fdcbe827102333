"""Whose run is it: facts, policies, bindings, mappers, consent and the audit log. Nothing in here knows Prefect."""

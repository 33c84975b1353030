"""Bodies checked against the guide's profile (OpenAPI). No requests are made here."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema


@cache
def profile() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("guide_profile.openapi.json").read_text())
    return loaded


def check_component(name: str, body: Any) -> None:
    """Raises jsonschema.ValidationError where `body` is not a `name` of the profile's components."""
    _validate({"$ref": f"#/components/schemas/{name}"}, body)


def check_request(method: str, path: str, body: Any) -> None:
    """Raises jsonschema.ValidationError, or KeyError for an operation that the profile does not know."""
    _validate(profile()["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"], body)


def check_answer(method: str, path: str, status: int, body: Any) -> None:
    """Raises jsonschema.ValidationError, or KeyError for an operation or status that the profile does not know."""
    responses = profile()["paths"][path][method]["responses"]
    _validate(responses[f"{status // 100}XX"]["content"]["application/json"]["schema"], body)


def _validate(schema: dict[str, Any], body: Any) -> None:
    root = {**schema, "components": profile()["components"]}
    jsonschema.Draft202012Validator(root, format_checker=jsonschema.FormatChecker()).validate(body)

"""Requests and answers checked against the contracts in this folder (OpenAPI). No requests are made here.

`guide` is two files, one laid over the other: what the guide prints, and what it leaves open (ours).
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jsonschema

Profile = Literal["guide", "cloud"]
Query = Mapping[str, Sequence[str]]

HERE = Path(__file__).parent
_FILES: Mapping[Profile, tuple[str, ...]] = {
    "guide": ("guide_profile.openapi.json", "guide_profile.ours.openapi.json"),
    "cloud": ("genesys_cloud_v2.openapi.json",),
}


class UnknownOperation(AssertionError):
    """A method, path or status that the contract does not have."""


def check_exchange(
    profile: Profile,
    method: str,
    path: str,
    query: Query,
    request_body: Any,
    status: int | None,
    response_body: Any,
) -> None:
    """Raises jsonschema.ValidationError or UnknownOperation where an exchange is not by the contract.

    path: as sent, without the query. query: as `parse_qs` gives it. Bodies: parsed (a form as a mapping), None for
    none. status: None where the connection ended before an answer.
    """
    operation, shared = _operation(profile, method, path)
    _check_query(profile, [*shared, *operation.get("parameters", ())], query)
    _check_request_body(profile, operation, request_body)
    if status is not None:
        _check_answer(profile, operation, status, response_body)


def template_of(profile: Profile, path: str) -> str | None:
    """The contract's templated path that `path` is an instance of; the one with the fewest templates, if several."""
    fitting = [template for pattern, template in _templates(profile) if pattern.fullmatch(path)]
    return min(fitting, key=lambda template: template.count("{"), default=None)


def check_component(name: str, body: Any, profile: Profile = "guide") -> None:
    """Raises jsonschema.ValidationError where `body` is not a `name` of the profile's components."""
    _validate(profile, {"$ref": f"#/components/schemas/{name}"}, body)


def check_request(method: str, path: str, body: Any, profile: Profile = "guide") -> None:
    """`path` may be templated. Raises jsonschema.ValidationError, UnknownOperation."""
    _check_request_body(profile, _operation(profile, method, path)[0], body)


def check_answer(method: str, path: str, status: int, body: Any, profile: Profile = "guide") -> None:
    """`path` may be templated. Raises jsonschema.ValidationError, UnknownOperation."""
    _check_answer(profile, _operation(profile, method, path)[0], status, body)


@cache
def contract(profile: Profile) -> dict[str, Any]:
    """The profile's OpenAPI document, its schemas as JSON Schema 2020-12."""
    whole: dict[str, Any] = {}
    for name in _FILES[profile]:
        whole = _laid_over(whole, json.loads((HERE / name).read_text()))
    adapted: dict[str, Any] = _nullable_as_type(whole)
    return adapted


@cache
def _templates(profile: Profile) -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile("[^/]+".join(re.escape(part) for part in re.split(r"\{\w+\}", template))), template)
        for template in contract(profile)["paths"]
    ]


def _operation(profile: Profile, method: str, path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The operation, and the parameters that it shares with the others of its path."""
    item = contract(profile)["paths"].get(template_of(profile, path), {})
    operation = item.get(method.lower())
    if operation is None:
        raise UnknownOperation(f"{method.upper()} {path} is not in the contract of {profile}")
    return operation, item.get("parameters", [])


def _check_query(profile: Profile, parameters: Sequence[Mapping[str, Any]], query: Query) -> None:
    declared = {one["name"]: one for one in parameters if one["in"] == "query"}
    schema = {
        "type": "object",
        "required": [name for name, one in declared.items() if one.get("required")],
        "properties": {name: one["schema"] for name, one in declared.items()},
        "additionalProperties": False,
    }
    given = {
        name: _typed(declared[name]["schema"], values) if name in declared else list(values)
        for name, values in query.items()
    }
    _validate(profile, schema, given)


def _typed(schema: Mapping[str, Any], values: Sequence[str]) -> Any:
    """What a query says, as its schema's type; the text itself where it can't be that, which then fails."""
    if schema.get("type") == "array":
        return [_typed(schema["items"], [value]) for value in values]
    value = values[-1]
    if schema.get("type") == "integer" and re.fullmatch(r"-?\d+", value):
        return int(value)
    if schema.get("type") == "boolean" and value in ("true", "false"):
        return value == "true"
    return value


def _check_request_body(profile: Profile, operation: Mapping[str, Any], body: Any) -> None:
    declared = operation.get("requestBody")
    if declared is None:
        _validate(profile, {"type": "null"}, body)
    elif body is not None or declared.get("required"):
        (content,) = declared["content"].values()
        _validate(profile, content["schema"], body)


def _check_answer(profile: Profile, operation: Mapping[str, Any], status: int, body: Any) -> None:
    responses = operation["responses"]
    answer = responses.get(str(status)) or responses.get(f"{status // 100}XX")
    if answer is None and status >= 500:
        return  # what stands in front of the API answers so, in its own words
    if answer is None:
        raise UnknownOperation(f"{operation['operationId']} does not answer {status} in the contract of {profile}")
    if "$ref" in answer:
        answer = contract(profile)["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    if content := answer.get("content"):
        _validate(profile, content["application/json"]["schema"], body)


def _validate(profile: Profile, schema: Mapping[str, Any], body: Any) -> None:
    whole = contract(profile)
    root = {**schema, "components": whole["components"], "paths": whole["paths"]}
    jsonschema.Draft202012Validator(root, format_checker=jsonschema.FormatChecker()).validate(body)


def _laid_over(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    both = {key: _laid_over(below[key], above[key]) for key in below.keys() & above.keys()}
    return {**below, **above, **both}


def _nullable_as_type(node: Any) -> Any:
    """OpenAPI 3.0 says `nullable: true` where JSON Schema says that the type may be null."""
    if isinstance(node, list):
        return [_nullable_as_type(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: _nullable_as_type(value) for key, value in node.items()}
    if made.get("nullable") is True and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made

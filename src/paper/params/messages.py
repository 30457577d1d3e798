"""One clear sentence from each of pydantic's errors: the key, the value given, and what is accepted."""

import re

UNKNOWN = "{key} is not a known key; remove it or correct its spelling (src/paper/params/defaults.yaml has every key)"
MISSING = "is missing; add it (src/paper/params/defaults.yaml has every key with a comment)"
SENTENCES = {
    "extra_forbidden": UNKNOWN,
    "unexpected_keyword_argument": UNKNOWN,
    "missing": f"{{key}} {MISSING}",
    "union_tag_not_found": f"{{key}}.source {MISSING}",
    "union_tag_invalid": "{key}.source is {tag!r}; accepted are {expected_tags}",
}
SECTIONS = ("model_type", "model_attributes_type", "dict_type", "dataclass_type")
WANTED = dict.fromkeys(SECTIONS, "it should be a section of keys") | {
    "list_type": "it should be a list, such as [a, b]",
    "int_type": "it should be a whole number",
    "int_from_float": "it should be a whole number",
    "string_type": 'it should be a text (in quotes, "5", where YAML sees a number)',
}


def sentences(errors: list[dict]) -> list[str]:
    """A sentence per mistake, from the errors of pydantic about `Params`."""
    by_key: dict[str, list[dict]] = {}
    for error in errors:
        by_key.setdefault(_key(error["loc"]), []).append(error)
    # If an entry of a list is wrong, pydantic also says that the list is none of the accepted words: only the entry is.
    return [_sentence(key, group) for key, group in by_key.items() if not any(k.startswith(f"{key}.") for k in by_key)]


def _key(loc: tuple) -> str:
    """The key of the file that an error is about, such as "baseline.attacks.0"."""
    tag = {"alignment": 1, "training": 2}.get(loc[0] if loc else None, len(loc))  # the index of the value of `source`
    names = [str(name) for name in loc[:tag] + loc[tag + 1 :]]
    return ".".join(n for n in names if not n.startswith(("literal[", "constrained-", "list[", "function-")))


def _sentence(key: str, errors: list[dict]) -> str:
    """The sentence about a key; if its value may be of several kinds, pydantic has an error for each."""
    error, messages = errors[0], [e["msg"].removeprefix("Value error, ") for e in errors]
    if error["type"] in SENTENCES:
        return SENTENCES[error["type"]].format(key=key, **error.get("ctx", {}))
    if not key:
        return messages[0]
    messages = [WANTED.get(e["type"], message) for e, message in zip(errors, messages, strict=True)]
    messages = dict.fromkeys(re.sub("^(Input|List|Dictionary) should", "it should", message) for message in messages)
    return f"{key} is {error.get('input')!r:.200}, but {' or '.join(messages).replace(' or it should be', ' or')}"

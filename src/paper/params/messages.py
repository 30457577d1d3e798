"""One clear sentence from each of pydantic's errors: the key, the value given, and what is accepted."""


def sentences(errors: list[dict], sources: set[str]) -> list[str]:
    """A sentence per mistake.

    Args:
        errors: pydantic's, of `Params`.
        sources: values of the keys `source`, which pydantic names as if they were keys.
    """
    keyed: dict[str, list[dict]] = {}
    for error in errors:
        keyed.setdefault(_key(error, sources), []).append(error)
    # Without those about a whole value of which a part is named too: a list with a mistake need not be a word.
    return [_sentence(key, found) for key, found in keyed.items() if not any(k.startswith(f"{key}.") for k in keyed)]


def _key(error: dict, sources: set[str]) -> str:
    """The key of the file that an error is about, as "baseline.attacks.0"."""
    loc = [
        str(p)
        for i, p in enumerate(error["loc"])
        if not ((p in sources and i and error["loc"][i - 1] == "alignment") or (p in sources and i == 2))
        and not str(p).startswith(("literal[", "constrained-", "list[", "function-"))
        and p not in ("int", "float")
    ]
    return ".".join(loc)


# What each of pydantic's type errors wants, in words.
WANTED = {
    "model_type": "it should be a section of keys",
    "model_attributes_type": "it should be a section of keys",
    "dict_type": "it should be a section of keys",
    "list_type": "it should be a list, such as [a, b]",
    "int_type": "it should be a whole number",
    "int_from_float": "it should be a whole number",
    "float_type": "it should be a number",
    "finite_number": "it should be a finite number",
    "bool_type": "it should be true or false",
    "string_type": 'it should be a text (in quotes, "5", where YAML sees a number)',
}


def _sentence(key: str, errors: list[dict]) -> str:
    """The sentence about a key; where a value may be of several kinds, pydantic has an error for each."""
    error = errors[0]
    if error["type"] == "extra_forbidden":
        return f"{key} is not a known key; remove it or correct its spelling (profiles/demo.yaml shows every key)"
    if error["type"] == "missing":
        return f"{key} is missing; add it (profiles/demo.yaml shows every key with a comment)"
    if error["type"] == "union_tag_not_found":
        return f"{key}.source is missing; add it (profiles/demo.yaml shows what it may be)"
    if error["type"] == "union_tag_invalid":
        return f"{key}.source is {error['ctx']['tag']!r}; accepted are {error['ctx']['expected_tags']}"
    if not key:
        return error["msg"].removeprefix("Value error, ")
    wanted = " or ".join(dict.fromkeys(_wanted(e) for e in errors)).replace(" or it should be", " or")
    return f"{key} is {error.get('input')!r}, but {wanted}"


def _wanted(error: dict) -> str:
    if error["type"] in ("too_short", "too_long"):
        least = error["ctx"].get("min_length")
        return f"it should have at {f'least {least}' if least else 'most ' + str(error['ctx']['max_length'])} entries"
    message = WANTED.get(error["type"], error["msg"].removeprefix("Value error, "))
    return (message[0].lower() + message[1:]).replace("input should be", "it should be")

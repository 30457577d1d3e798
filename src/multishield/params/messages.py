"""One clear sentence from each of pydantic's errors: the key, the value given, and what is accepted."""


def sentences(errors: list[dict], sources: set[str]) -> list[str]:
    """A sentence per mistake.

    Args:
        errors: pydantic's, of `Params`.
        sources: values of the keys `source`, which pydantic names as if they were keys.
    """
    keyed = [(_key(e, sources), e) for e in errors]
    keys = [key for key, _ in keyed]
    # Without those about a whole value of which a part is named too: a list with a mistake need not be a word.
    return [_sentence(key, e) for key, e in keyed if not any(k.startswith(f"{key}.") for k in keys)]


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


def _sentence(key: str, error: dict) -> str:
    if error["type"] == "extra_forbidden":
        return f"{key} is not a known key; remove it or correct its spelling (profiles/demo.yaml shows every key)"
    if error["type"] == "missing":
        return f"{key} is missing; add it (profiles/demo.yaml shows every key with a comment)"
    message = error["msg"].removeprefix("Value error, ")
    if not key:
        return message
    message = message[0].lower() + message[1:]
    return f"{key} is {error.get('input')!r}, but {message.replace('input should be', 'it should be')}"

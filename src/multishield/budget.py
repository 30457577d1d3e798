"""The strength of the attacks of an evaluation. The section `adaptive` of params.yaml validates into a `Budget`."""

from dataclasses import dataclass, field, fields


def radius(value: float | str) -> float:
    """A radius given as a number or as "8/255". Raises ValueError for another text."""
    above, slash, below = str(value).partition("/")
    try:
        return float(above) / float(below) if slash else float(above)  # Fraction("1e-99999999") would take for ever
    except (ValueError, ZeroDivisionError):
        raise ValueError('must be a fraction such as "8/255" or a number') from None


def _count(default: int, least: int = 1):
    """A whole number of at least `least`; `Params` reads the same bounds from the metadata."""
    return field(default=default, metadata={"ge": least, "strict": True})


class _Checked:
    """Values are checked when they are set; a section may be given as a dictionary."""

    def __post_init__(self):
        for each in fields(self):
            value, least = getattr(self, each.name), each.metadata.get("ge")
            if least is None and isinstance(value, dict):
                value = each.default_factory(**value)
                object.__setattr__(self, each.name, value)
            if least is None and not isinstance(value, each.default_factory):
                raise ValueError(f"{each.name} is {value!r}; give a {each.default_factory.__name__}(...)")
            if least is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"{each.name} is {value!r}; give a whole number of at least {least}")


@dataclass(frozen=True)
class Paper(_Checked):
    """The adaptive attack of the paper's public code: `steps` of APGD for each of its two losses."""

    steps: int = _count(100, least=5)


@dataclass(frozen=True)
class Joint(_Checked):
    """The attack on all components at once: `steps` for each target class and restart."""

    targets: int = _count(5)
    steps: int = _count(100)
    restarts: int = _count(1)


@dataclass(frozen=True)
class Components(_Checked):
    """APGD on one component alone: two untargeted tries, then `targets` wrong classes, `steps` each."""

    targets: int = _count(9)
    steps: int = _count(100, least=5)


@dataclass(frozen=True)
class Denial(_Checked):
    """The attack that wants a clean image to be rejected: `steps` of APGD for each try."""

    steps: int = _count(60, least=5)


@dataclass(frozen=True)
class Square(_Checked):
    """The black-box attack on the images that no other attack broke: `queries` per image."""

    queries: int = _count(5000)


@dataclass(frozen=True)
class Sanity(_Checked):
    """The first `images` are attacked again at other radii, for the sanity rules."""

    images: int = _count(50)


@dataclass(frozen=True)
class Budget(_Checked):
    """The strength of every attack of `evaluate`. Raises ValueError for a value that is not a count in its range."""

    paper: Paper = field(default_factory=Paper)
    joint: Joint = field(default_factory=Joint)
    components: Components = field(default_factory=Components)
    denial: Denial = field(default_factory=Denial)
    square: Square = field(default_factory=Square)
    sanity: Sanity = field(default_factory=Sanity)

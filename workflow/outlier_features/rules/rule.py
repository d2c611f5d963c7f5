"""What a selection rule is, whatever its kind, and what a rule that selects dims by hits says to the stages."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import nextafter
from typing import TYPE_CHECKING, Any, ClassVar

from outlier_features.errors import InputError
from outlier_features.model.bases import NORM_OUTPUTS, basis_of
from outlier_features.wording import number

if TYPE_CHECKING:
    import polars as pl  # elsewhere where it is used: to read a configuration no table is needed

SHARE: Mapping[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
POSITIVE: Mapping[str, Any] = {"type": "number", "exclusiveMinimum": 0}
SITE: Mapping[str, Any] = {"$ref": "#/$defs/site"}
SITES: Mapping[str, Any] = {"type": "array", "uniqueItems": True, "items": SITE}
FLAG: Mapping[str, Any] = {"type": "boolean"}


def parameter(description: str, schema: Mapping[str, Any], default: Any = MISSING) -> Any:
    """A field of a kind that the configuration sets; `schema` is the JSON Schema of its values."""
    about = {"description": description, **schema}
    return (
        field(metadata={"schema": about}) if default is MISSING else field(default=default, metadata={"schema": about})
    )


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """An instance of a kind.

    A kind is a subclass with `kind`, `noun` (what it looks for, in the singular) and `source` (who published it), and a
    `parameter` for each key that the configuration may set. Its docstring describes it in docs/config.md.
    """

    name: str

    kind: ClassVar[str]
    noun: ClassVar[str]
    source: ClassVar[str] = ""

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """JSON Schema of an instance in the configuration."""
        own = [one for one in fields(cls) if "schema" in one.metadata]
        keys = {
            one.name: one.metadata["schema"] | ({} if one.default is MISSING else {"default": plain(one.default)})
            for one in own
        }
        return {
            "description": " ".join((cls.__doc__ or "").split()),
            "type": "object",
            "additionalProperties": False,
            "required": ["kind", *(one.name for one in own if one.default is MISSING)],
            "properties": {"kind": {"description": "The kind.", "const": cls.kind}, **keys},
        }

    def require_sound(self) -> None:  # noqa: B027, a kind may have nothing to check
        """Raise `InputError` where parameters that are valid each for itself do not go together."""

    @property
    def recorded_sites(self) -> tuple[str, ...]:
        """Sites that are extracted for the rule's sake."""
        return ()

    @abstractmethod
    def criteria(self) -> str:
        """Its numbers, in a few words, such as `|x| >= 6`."""

    @abstractmethod
    def meaning(self) -> str:
        """What it selects, in a sentence or two that begin with `Rule <name>`."""

    def config(self) -> dict[str, Any]:
        """The parameters as the configuration and the provenance of files have them."""
        own = {one.name: plain(getattr(self, one.name)) for one in fields(self) if "schema" in one.metadata}
        return {"kind": self.kind, **own}

    def titled(self) -> str:
        """`Rule <name>`, with who published it."""
        return f"Rule {self.name}" + (f" ({self.source})" if self.source else "")


def plain(value: Any) -> Any:
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value


def unlisted(value: Any) -> Any:
    """`value` with tuples for lists, as fields of a rule are."""
    return tuple(map(unlisted, value)) if isinstance(value, list) else value


TOKEN_RMS, LAYER_RMS, GAIN = "token_rms", "layer_rms", "gain"
SCALES: Mapping[str | None, str] = {
    None: "|x|",
    TOKEN_RMS: "|x| / RMS of the position",
    LAYER_RMS: "|x| / RMS of the sequence and layer",
    GAIN: "|x / gain|",
}
SCALE: Mapping[str, Any] = {"enum": [*SCALES]}
SMALLEST_SCALED = 3.0  # at most 1 / k^2 of the values reach k times their RMS, so that hits can be listed, see `scan`


class HitRule(Rule):
    """A rule that takes some values at its sites as hits, and passes (sequence, dim) pairs by where their hits are.

    A dim is selected if it passes in a sequence. `filter_systematic` applies such rules and needs to know no kind.

    sites          where it looks, jointly; all on one basis
    threshold      no hit is smaller, on the rule's `scale`
    scale          what abs(x) is divided by: None, token_rms, layer_rms or gain
    extract_sites  whether its sites are extracted for its sake; else it is applied to those that are extracted anyway
    follow_up      whether the stages that look at selected dims more closely look at those that it selects
    lists_hits     whether each of its hits is a row of massive.parquet
    """

    if TYPE_CHECKING:  # each a field or a property of the kind

        @property
        def sites(self) -> tuple[str, ...]: ...
        @property
        def threshold(self) -> float: ...

    scale: str | None = None
    extract_sites: bool = True
    follow_up: bool = True
    lists_hits: ClassVar[bool] = False

    @property
    def basis(self) -> str:
        """What its dims count, see `bases`."""
        return basis_of(self.sites[0])

    @property
    def recorded_sites(self) -> tuple[str, ...]:
        return self.sites if self.extract_sites else ()

    @property
    def grid(self) -> tuple[float, ...]:
        """Thresholds at which the table `sensitivity` has it."""
        return ()

    @property
    def reaches(self) -> str:
        """What is large enough, in words: `|x| / RMS of the position >= 6`."""
        return f"{SCALES[self.scale]} >= {number(self.threshold)}"

    @property
    def counts_suffice(self) -> bool:
        """Whether every value of at least the threshold is a hit: then hits that are too many to list are counted."""
        return True

    @property
    def listed_above(self) -> tuple[float, float]:
        """What every hit's abs(x) is above, and how many medians of its layer and sequence it is at least.

        Where counts do not suffice, such values are listed even of a sequence that has too many others.
        """
        return nextafter(self.threshold, 0.0), 0.0

    def is_hit(self, threshold: float) -> "pl.Expr":
        """Which values are hits at a threshold.

        The columns are those of a value at one of the sites, in one population: `size` (abs(x) on the rule's scale),
        `value`, `median` (of abs(x) over its layer, sequence and population), `sequence`, `layer`, `site` (index in
        `sites`), `token`, `dim`, `excluded`.
        """
        import polars as pl

        return pl.col("size") >= threshold

    def passes(self) -> "pl.Expr":
        """Which (sequence, dim) pairs pass, from the columns of the table `pairs`."""
        import polars as pl

        return pl.lit(True)

    def require_sound(self) -> None:
        bases = {basis_of(site) for site in self.sites}
        if len(bases) > 1:
            raise InputError(
                f"config: rules.{self.name}.sites is {', '.join(self.sites)}, whose dims are of {len(bases)} bases "
                f"({', '.join(sorted(bases))}), expected sites of one"
            )
        if self.scale == GAIN and (wrong := [site for site in self.sites if site not in NORM_OUTPUTS]):
            raise InputError(
                f"config: rules.{self.name} has scale gain on {wrong[0]}, expected outputs of norms, "
                f"{', '.join(NORM_OUTPUTS)}"
            )
        smallest = min((self.threshold, *self.grid))
        if self.scale is not None and smallest < SMALLEST_SCALED:
            raise InputError(
                f"config: rules.{self.name} has the threshold {smallest:g} on scale {self.scale}, expected at least "
                f"{SMALLEST_SCALED:g}, since below it a large part of all values are hits"
            )

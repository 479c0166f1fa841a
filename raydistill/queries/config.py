"""How the teacher writes further queries where there are too few: the `expand` table."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from raydistill.core.config import Section

Kind = Literal["question", "use_case", "edge_case", "adversarial", "rephrase", "translate"]
SHARES: dict[Kind, float] = {
    "question": 0.3,
    "use_case": 0.2,
    "edge_case": 0.2,
    "adversarial": 0.1,
    "rephrase": 0.1,
    "translate": 0.1,
}


class ExpansionConfig(Section):
    """Whether and how further queries are written."""

    enabled: bool = False
    """Write further queries where those given are fewer than are to be asked; without it that is an error."""
    shares: dict[Kind, float] = Field(default_factory=lambda: dict(SHARES))
    """Kind -> its weight. question: a direct one; use_case: a realistic situation; edge_case: the border of one rule of
    P; adversarial: an attempt to make the model break P, or off-topic; rephrase and translate: a known query in other
    words or another language. A kind that is left out is not written; one that is not possible leaves its share to the
    others."""
    languages: list[str] = Field(default_factory=list)
    """Languages that known queries are written in anew, as the teacher knows them ("German"); none: no translations."""
    queries_per_request: int = Field(default=8, ge=1, le=50)
    """How many queries the teacher is asked for at a time."""
    requests_per_round: int = Field(default=64, ge=1)
    """Requests of one round at most; after a round its queries are compared with all others and written, all into one
    file anew. A kill asks a round again; for a million queries take more."""
    max_rounds: int = Field(default=1000, ge=1)
    """Rounds at most."""
    idle_rounds: int = Field(default=3, ge=1)
    """After so many rounds in a row that bring nothing new, expansion has stalled and ends with an error."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Of the teacher when it writes queries."""
    max_tokens: int = Field(default=512, ge=1)
    """Of one request's answer; the last query of an answer that runs into it is thrown away."""
    near_threshold: float = Field(default=0.7, ge=0.5, le=0.99)
    """A new query whose text resembles a known one's so much (estimated Jaccard similarity) is thrown away."""
    max_query_chars: int = Field(default=2000, ge=1)
    """A longer new query is thrown away."""

    @field_validator("shares")
    @classmethod
    def _shares_are_weights(cls, shares: dict[Kind, float]) -> dict[Kind, float]:
        if any(share < 0 for share in shares.values()) or not sum(shares.values()) > 0:
            raise ValueError("the shares must be weights of at least 0, and one of them above 0")
        return shares

    @model_validator(mode="after")
    def _translations_have_languages(self) -> Self:
        if not self.languages and {kind for kind, share in self.shares.items() if share} == {"translate"}:
            raise ValueError("shares holds translate only, and languages is empty")
        return self

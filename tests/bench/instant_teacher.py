"""A Serve deployment with the engine's surface that answers every row at once, with the same three tokens."""

from ray import serve
from ray.serve.handle import DeploymentHandle

from raydistill.core.records import TokenRequest, TokenResult, Usage


@serve.deployment(name="engine", ray_actor_options={"num_cpus": 1}, max_ongoing_requests=1024)
class InstantTeacher:
    """Answers without a model."""

    async def info(self) -> dict:
        """Return what asking actors want to know."""
        return {"max_model_len": 2048}

    async def generate(self, rows: list[TokenRequest], after: str | None = None) -> list[TokenResult]:
        """Return two tokens of text and the end of the turn for each row."""
        return [
            TokenResult([300, 301, row.stop_token_ids[0]], [], "stop", Usage(len(row.tokens), 0, 3)) for row in rows
        ]


def start() -> DeploymentHandle:
    """Start it and return the handle of its engine."""
    serve.start(http_options={"location": "NoServer"})
    return serve.run(InstantTeacher.bind(), name="instant", route_prefix=None)

"""The teacher grades the answers that the rules keep: rows and a ledger like any other, in `judgements/`."""

import dataclasses
import json
from collections.abc import Iterator

import pyarrow as pa

from jobs.asking import Work, ask_missing
from jobs.data_config import CreateDataConfig
from jobs.data_plan import Plan, Teacher, find_unjudged, read_standing
from jobs.progress import show_asking
from jobs.watching import Asker
from raydistill.core.answers import answers_from_table
from raydistill.core.errors import NotFoundError
from raydistill.core.idset import pack_ids
from raydistill.core.prompts import Prompt
from raydistill.core.uris import join
from raydistill.dataset.appending import OpenLedger
from raydistill.dataset.judge import Rubric, judge_messages, judgement_id
from raydistill.dataset.keep import Origin
from raydistill.dataset.ledger import LedgerWriter, find_unnamed
from raydistill.dataset.read import read_manifest
from raydistill.dataset.sieve import JUDGEMENTS
from raydistill.dataset.spending import with_spent

NO_PROMPT = Prompt("messages", [])


def judge_answers(plan: Plan, rubric: Rubric, config: CreateDataConfig, teacher: Teacher) -> None:
    """Ask the judge for every answer that the rules keep and that it has not graded yet; the answers stream by.

    Raises:
        ServiceError, BudgetError: as asking does; what was judged until then stays.
    """
    standing = read_standing(plan, retry_failed=False)

    def find() -> Iterator[pa.Table]:
        return find_unjudged(plan, rubric, standing, config.retry_failed)

    num_rows = sum(table.num_rows for table in find())
    if not num_rows:
        return
    rows = (
        {
            "id": judgement_id(answer.id, rubric.digest),
            "query_id": answer.id,
            "sample_index": 0,
            "messages": json.dumps(judge_messages(plan.prompt, answer, rubric), ensure_ascii=False),
        }
        for table in find()
        for answer in answers_from_table(table)
    )
    place = join(plan.folder, JUDGEMENTS)
    ledger = _open(place, plan, num_rows, standing.manifest.spent)
    origin = Origin.of(plan.draft)
    work = Work(NO_PROMPT, plan.renderer, rows, num_rows, LedgerWriter(place, origin), pack_ids([]))
    asking = {
        "temperature": rubric.temperature,
        "top_p": 1.0,
        "max_tokens": rubric.max_tokens,
        "stop": [],
        "top_logprobs": None,
        "answer_turns": "last",
    }
    with show_asking(num_rows, ledger.manifest) as progress:
        ask_missing(Asker(config.model_copy(update=asking), teacher, ledger, progress), work)


def _open(place: str, plan: Plan, num_rows: int, spent: dict[str, dict[str, int]]) -> OpenLedger:
    """Return the ledger of judgements, with what is there already, and with all that was spent on the dataset."""
    counts = {"asked": num_rows, "answered": 0, "kept": 0, "dropped": {}}
    draft = dataclasses.replace(plan.draft, sampling={}, counts=counts)
    try:
        before = read_manifest(place)
        draft = dataclasses.replace(draft, answers=before.answers, tokens=before.tokens)
        spent = {**spent, "judgements": before.tokens}  # what is not named yet is added below
    except NotFoundError:
        before = draft
    ledger = OpenLedger(place, with_spent(draft, spent), "judgements")
    ledger.add(find_unnamed(place, before.answers, Origin.of(plan.draft)))
    return ledger

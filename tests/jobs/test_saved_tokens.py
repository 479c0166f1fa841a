"""How many tokens of P a version saves: as many as P makes a prompt longer, where the dataset keeps its P."""

from jobs.saved_tokens import count_saved_tokens
from raydistill.core.prompts import load_prompt, student_messages, teacher_messages
from raydistill.core.records import Manifest
from raydistill.dataset.write import keep_prompt
from raydistill.renderers import get_renderer, load_tokenizer


def test_saved_tokens_are_those_that_p_adds_to_a_prompt(tokenizer_dir, tmp_path):
    file = tmp_path / "p.md"
    file.write_text("You are the help desk of a shop. Answer in few words.")
    prompt = load_prompt(file)
    tokenizer = load_tokenizer(str(tokenizer_dir))
    manifest = Manifest("f", True, prompt.digest, {}, {}, {}, {})
    assert count_saved_tokens(str(tmp_path / "data"), manifest, "chat", tokenizer) == {}, "P is not kept there"
    assert count_saved_tokens(str(tmp_path / "data"), None, "chat", tokenizer) == {}
    query = [{"role": "user", "content": "Where is it?"}]
    build = get_renderer("chat", tokenizer).build_generation_prompt
    longer = build(teacher_messages(prompt, query)).length - build(student_messages(query)).length
    assert longer > 5
    keep_prompt(prompt, str(tmp_path / "data" / "prompts"))
    found = count_saved_tokens(str(tmp_path / "data"), manifest, "chat", tokenizer)
    assert found == {"prompt_tokens_saved": longer}
    keep_prompt(prompt, str(tmp_path / "data.jsonl.d" / "prompts"))
    assert count_saved_tokens(str(tmp_path / "data.jsonl"), manifest, "chat", tokenizer) == found

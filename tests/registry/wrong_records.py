"""Versions whose `version.json` or `adapter_config.json` is wrong; digests are right where they can be."""

import math

from tests.registry.version_copy import CONFIG, RECORD, WEIGHTS
from tests.registry.wrong_files import TEN_GB


def declare_ten_gb(copy, rng):
    record = copy.read(RECORD)
    rng.choice(record["files"])["bytes"] = TEN_GB + rng.randrange(1000)
    copy.write(RECORD, record)


def change_the_base(copy, rng):
    copy.change_record(base_revision=f"{rng.getrandbits(128):032x}")


def change_the_template(copy, rng):
    copy.change_record(template_digest=f"{rng.getrandbits(128):032x}")


def change_the_renderer(copy, rng):
    copy.change_record(renderer=rng.choice(["raw", "jinja", "", "../chat", "Chat", "chat\x00"]))


def say_another_rank(copy, rng):
    key = rng.choice(["r", "lora_alpha"])
    copy.change_config(
        **{key: rng.choice([0, -4, 3, 64, 4.5, "4", True, None, [4], 1e300, math.nan, math.inf, 10**400])}
    )


def publish_another_rank(copy, rng):
    lora, key = copy.read(RECORD)["lora"], rng.choice(["rank", "alpha", "modules"])
    wrong = rng.choice([0, -1, 3, 64, 4.5, "4", True, None, [], {}, math.nan, math.inf])
    copy.change_record(lora={**lora, key: wrong})


def raise_the_scale(copy, rng):
    alpha = rng.choice([500, 10**6, 1e30])
    copy.change_config(lora_alpha=alpha)
    copy.change_record(lora={**copy.read(RECORD)["lora"], "alpha": alpha})


def widen_the_adapter(copy, rng):
    odd = rng.choice(
        [
            {"use_dora": True},
            {"use_rslora": True},
            {"bias": "all"},
            {"bias": "lora_only"},
            {"modules_to_save": ["lm_head"]},
            {"rank_pattern": {"q_proj": 64}},
            {"alpha_pattern": {"q_proj": 1e9}},
            {"fan_in_fan_out": True},
            {"lora_bias": True},
            {"layer_replication": [[0, 2], [0, 2]]},
            {"trainable_token_indices": [1]},
            {"target_parameters": ["experts"]},
            {"init_lora_weights": "pissa"},
            {"init_lora_weights": ["loftq"]},
            {"peft_type": rng.choice(["IA3", "LOHA", None, ["LORA"], {}])},
        ]
    )
    copy.change_config(**odd)


def mistarget(copy, rng):
    targets = copy.read(CONFIG)["target_modules"]
    copy.change_config(
        target_modules=rng.choice(
            [
                [],
                None,
                "all-nonlinear",
                "(a+)+$",
                3,
                [3],
                ["../q_proj"],
                ["nothing"],
                [*targets, "nothing"],
                targets[1:],
            ]
        )
    )


def break_the_config(copy, rng):
    texts = [b"", b"[]", b"null", b"{", b"\xff\xfe", b"4", b"[" * 50_000, b'{"r": 4}', b'{"r": 4, "lora_alpha": 4}']
    (copy.folder / CONFIG).write_bytes(rng.choice(texts))
    copy.seal()


def list_other_files(copy, rng):
    files = copy.read(RECORD)["files"]
    odd = rng.choice(["../adapter_config.json", "/etc/passwd", f"../v0001/{WEIGHTS}", "", ".", WEIGHTS, f"./{CONFIG}"])
    files[rng.randrange(2)]["name"] = odd
    copy.change_record(files=[*files, files[0]] if odd == WEIGHTS else files)


def rename_the_model(copy, rng):
    odd = rng.choice(["../triage", "other", "", "/tmp", "a/b", "triage\x00", "t" * 65, "..", "Triage"])
    copy.change_record(name=odd)


def renumber(copy, rng):
    copy.change_record(number=rng.choice([0, -1, 2, 10**30, 1.5, "1", None, True, [1]]))


def spoil_the_probe(copy, rng):
    probe = copy.read(RECORD)["probe"]
    point = rng.choice(probe)
    key, values = rng.choice(
        [
            ("prefix", [[], [-1], ["1"], [10**9], "12", None, [1.5], [1] * 5000]),
            ("token", [-1, 10**9, 1.5, "1", None]),
            ("base", [math.nan, -math.inf, "0", None, 3.5]),
            ("adapter", [math.nan, math.inf, [], 1e9]),
        ]
    )
    point[key] = rng.choice(values)
    copy.change_record(probe=probe * 65 if rng.random() < 0.1 else probe)


def empty_the_probe(copy, rng):
    copy.change_record(probe=rng.choice([[], None, {}, [[]], [{}], "16"]))


def spoil_a_field(copy, rng):
    record = copy.read(RECORD)
    key = rng.choice(sorted(record))
    kinds = [None, 3, 1.5, True, "x", [], {}, [[]], [3], {"a": []}]
    wrong = [kind for kind in kinds if type(kind) is not type(record[key])]
    copy.change_record(**{key: rng.choice(wrong)})


def reshape_the_record(copy, rng):
    record = copy.read(RECORD)
    if rng.random() < 0.5:
        del record[rng.choice(sorted(record))]
    else:
        record[rng.choice(["extra", "", "__class__", "label"])] = rng.choice([None, 1, "x"])
    copy.write(RECORD, record)


def break_the_record(copy, rng):
    text = (copy.folder / RECORD).read_bytes()
    texts = [
        b"",
        b"[]",
        b"null",
        b"\xff" + text,
        b"[" * 50_000,
        text[: rng.randrange(1, len(text.rstrip()))],
        text + b"}",
    ]
    (copy.folder / RECORD).write_bytes(rng.choice(texts))

"""Versions whose weights are those of another model, rank or module, or poison; their digests are right."""

import math

import torch

from tests.registry.version_copy import PREFIX, RECORD


def give_whole_numbers(copy, rng):
    tensors = copy.tensors()
    name = rng.choice(sorted(tensors))
    tensors[name] = tensors[name].to(rng.choice([torch.int32, torch.int64, torch.uint8, torch.bool]))
    copy.save(tensors)
    copy.seal()


def change_a_hidden_size(copy, rng):
    tensors, module = copy.tensors(), copy.pick_module(rng)
    part, axis = rng.choice([("A", 1), ("B", 0)])
    name = f"{module}.lora_{part}.weight"
    size = tensors[name].shape[axis] + rng.choice([-7, -1, 1, 8, 64])
    shape = [size if axis == index else length for index, length in enumerate(tensors[name].shape)]
    tensors[name] = torch.zeros(shape)
    copy.save(tensors)
    copy.seal()


def change_a_modules_rank(copy, rng):
    tensors, module, rank = copy.tensors(), copy.pick_module(rng), rng.choice([1, 2, 3, 5, 8])
    a, b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
    tensors[f"{module}.lora_A.weight"] = torch.zeros(rank, a.shape[1])
    tensors[f"{module}.lora_B.weight"] = torch.zeros(b.shape[0], rank)
    copy.save(tensors)
    copy.seal()


def raise_the_rank(copy, rng):
    """Right in itself, but above what the engine takes."""
    rank, record = rng.randrange(9, 129), copy.read(RECORD)
    tensors = {
        name: torch.zeros(rank, tensor.shape[1]) if "lora_A" in name else torch.zeros(tensor.shape[0], rank)
        for name, tensor in copy.tensors().items()
    }
    copy.save(tensors)
    copy.change_config(r=rank, lora_alpha=rank)
    copy.change_record(lora={**record["lora"], "rank": rank, "alpha": rank})


def rename_a_module(copy, rng):
    module = copy.pick_module(rng)
    bare = module.removeprefix(PREFIX)
    renamed = rng.choice(
        [
            bare,
            f"model.{module}",
            module.replace("layers.", "layers.7"),
            f"{module}_",
            module.upper(),
            f"{PREFIX}../{bare}",
            f"{PREFIX}/etc/{bare}",
            module.replace(".", "/"),
            f"{PREFIX}model.embed_tokens",
            f"{PREFIX}model.norm",
            f"{PREFIX}{PREFIX}{bare}",
            f"{module}.base_layer",
            "",
        ]
    )
    copy.save({name.replace(module, renamed): tensor for name, tensor in copy.tensors().items()})
    copy.seal()


def rename_every_module(copy, rng):
    old, new = rng.choice([(PREFIX, ""), ("layers", "blocks"), ("lora_A", "lora_a"), (".weight", ".default.weight")])
    copy.save({name.replace(old, new): tensor for name, tensor in copy.tensors().items()})
    copy.seal()


def drop_modules(copy, rng):
    tensors = copy.tensors()
    modules = sorted({name.rpartition(".lora_")[0] for name in tensors})
    dropped = set(rng.sample(modules, rng.randrange(1, len(modules))))
    copy.save({name: tensor for name, tensor in tensors.items() if name.rpartition(".lora_")[0] not in dropped})
    copy.seal()


def drop_a_factor(copy, rng):
    tensors = copy.tensors()
    del tensors[rng.choice(sorted(tensors))]
    copy.save(tensors)
    copy.seal()


def add_a_tensor(copy, rng):
    module = copy.pick_module(rng)
    name = rng.choice(
        ["lora_magnitude_vector", "lora_A.bias", "lora_embedding_A", "lora_C.weight", "lora_A.other.weight"]
    )
    copy.save({**copy.tensors(), f"{module}.{name}": torch.zeros(4)})
    copy.seal()


def poison_a_weight(copy, rng):
    dtype = rng.choice([torch.float16, torch.float32, torch.bfloat16, torch.float64])
    tensors = {name: tensor.to(dtype) for name, tensor in copy.tensors().items()}
    tensor = tensors[rng.choice(sorted(tensors))]
    place = tuple(rng.randrange(length) for length in tensor.shape)
    tensor[place] = rng.choice([math.nan, math.inf, -math.inf, 1e4, -101.0])
    copy.save(tensors)
    copy.seal()

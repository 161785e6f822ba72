"""A process of benchmarks/processes.py: CONFIG STEPS [--section.key value].

The main one prints its seconds, and the largest memory of all, as JSON.
"""

import itertools
import json
import sys
import time

import torch

from models.encoders.building import tokenizer_source
from utils import distributed
from utils.config.config import load_config
from utils.config.methods import method_class
from utils.data.batches import training_batches
from utils.data.dataset import load_dataset
from utils.pretrained.location import load_tokenizer
from utils.run.environment import peak_memory
from utils.runtime import Runtime
from utils.training.gradients import clip_gradients, sum_gradients
from utils.training.optim import build_optimizers


def main() -> None:
    path = sys.argv[1]
    steps = int(sys.argv[2])
    words = sys.argv[3:]
    config = load_config(path, words)
    accelerator = distributed.start()
    torch.set_num_threads(distributed.cpu_threads(config.run.threads))
    tokenizer = load_tokenizer(tokenizer_source(config.encoder))
    start = peak_memory(accelerator.device)["memory_mb"]
    data = load_dataset(config, tokenizer)
    learner = method_class(config.method.name)(config, data, None, Runtime(accelerator))
    learner.module.train()
    optimizers = build_optimizers(learner.groups(), config.optim)
    parameters = list(learner.module.parameters())

    def step(batch) -> None:
        learner.backward(batch)
        sum_gradients(parameters)
        clip_gradients(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    whole = (
        batch
        for epoch in itertools.count()
        for batch in training_batches(data.splits["trn"], None, config, epoch)
        if len(batch.points) == config.train.batch_size
    )
    batches = list(itertools.islice(whole, steps + 2))
    for batch in batches[:2]:
        step(batch)
    distributed.barrier()
    started = time.perf_counter()
    for batch in batches[2 : 2 + steps]:
        step(batch)
    distributed.barrier()
    seconds = time.perf_counter() - started
    memory = distributed.agree(int(peak_memory(accelerator.device)["memory_mb"]))
    if distributed.is_main():
        print(json.dumps({"seconds": seconds, "start_mb": start, "memory_mb": memory}), flush=True)
    distributed.stop()


if __name__ == "__main__":
    main()

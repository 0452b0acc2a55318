"""The plain baseline: what a capable user writes first. TRL's trainer as documented, `generate` as it comes, the model loaded anew every cycle."""

from __future__ import annotations

import logging
import tempfile
from typing import Any

from selftrain.bench import measure
from selftrain.bench.floors import Shape
from selftrain.bench.sizes import Sizes, config, items, prompts


def load(name: str, device: str) -> tuple[Any, Any]:
    """Model and tokenizer, afresh from disk."""
    from selftrain import models

    found = models.load(name, device=device)
    found.tokenizer.padding_side = "left"
    return found.model, found.tokenizer


def generate(model: Any, tokenizer: Any, texts: list[str], new_tokens: int, temperature: float, batch: int) -> tuple[list[str], int, int]:
    """Sampled answers to chat prompts by `generate` with its default cache; the texts, tokens in all answers, decoding steps."""
    import torch

    answers, tokens, steps = [], 0, 0
    for start in range(0, len(texts), batch):
        turns = [[{"role": "user", "content": text}] for text in texts[start : start + batch]]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True).to(
            model.device
        )
        with torch.no_grad():
            out = model.generate(
                **inputs,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=new_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        made = out[:, inputs["input_ids"].shape[1] :]
        steps += made.shape[1]
        for row in made.tolist():
            row = row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row
            tokens += len(row)
            answers.append(tokenizer.decode(row, skip_special_tokens=True).strip())
    return answers, tokens, steps


def adapter(sizes: Sizes) -> Any:
    """The LoRA configuration of the bench's chain."""
    from peft import LoraConfig

    c = config(sizes)
    return LoraConfig(r=c.lora_rank, lora_alpha=c.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def train(model: Any, tokenizer: Any, sizes: Sizes, n_rows: int, seed: int) -> tuple[Any, list[float]]:
    """A fresh LoRA trained for an epoch on conversations by SFTTrainer; the trained model and seconds of each step but the first."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    c, steps, cuda = config(sizes), measure.Steps(), model.device.type == "cuda"

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps(state.global_step, state.max_steps)

    rows = [{"messages": [{"role": "user", "content": i.prompt}, {"role": "assistant", "content": i.answer}]} for i in items(n_rows)]
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=c.batch_size,
            num_train_epochs=1,
            learning_rate=c.lr,
            max_length=c.max_length,
            loss_type="nll",
            bf16=cuda,
            use_cpu=not cuda,
            gradient_checkpointing=False,  # TRL's default is on; off here, as in the project, so that the work is the same
            seed=seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapter(sizes),
            callbacks=[Clock()],
        )
        trainer.train()
    return trainer.model.eval(), steps.seconds()


def cycle(sizes: Sizes, device: str, seed: int) -> tuple[int, list[float]]:
    """One whole cycle: load, train on n_sampled rows, answer n_sampled prompts and n_eval; (tokens sampled, seconds of the steps)."""
    c = config(sizes)
    model, tokenizer = load(sizes.model, device)
    model, steps = train(model, tokenizer, sizes, sizes.n_sampled, seed)
    asked = prompts(sizes.n_sampled + sizes.n_eval)
    made = 0
    for texts, temperature in ((asked[: sizes.n_sampled], c.temperature), (asked[sizes.n_sampled :], c.eval_temperature)):
        made += generate(model, tokenizer, texts, sizes.new_tokens, temperature, sizes.batch)[1]
    return made, steps


def run(sizes: Sizes, device: str) -> dict[str, Any]:
    """The part `baseline` of the bench."""
    import datasets
    from peft import get_peft_model
    from transformers import set_seed

    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    set_seed(0)
    loaded = list(load(sizes.model, device))
    ready, shape = measure.since_start(), Shape.of(loaded[0])
    loaded[0] = get_peft_model(loaded[0], adapter(sizes)).eval()  # a cycle samples with its adapter on, and so does the other side
    texts, c = prompts(sizes.batch), config(sizes)

    def sampled():
        return generate(*loaded, texts, sizes.new_tokens, c.temperature, sizes.batch)

    first, _ = measure.timed(sampled)
    rates, step_times = [], []
    for _ in range(sizes.repeats):
        seconds, (_, tokens, steps) = measure.timed(sampled)
        rates.append(tokens / seconds)
        step_times.append(seconds / steps)
    loaded.clear()
    first_cycle, cycles, train_steps = measure.timed_cycles(lambda seed: cycle(sizes, device, seed), sizes.repeats)
    once = {"startup_seconds": ready, "first_sample_seconds": first, "first_cycle_seconds": first_cycle, "shape": vars(shape)}
    return measure.side(rates, step_times, train_steps, cycles, **once)

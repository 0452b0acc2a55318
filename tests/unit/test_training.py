"""Token rows, the loss mask, the reference policy of DPO, and that a trainer leaves nothing behind."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from selftrain import formats, passes, training
from selftrain.formats import IGNORED, Item
from selftrain.resident import Resident
from selftrain.sampling import nll
from selftrain.tokenrows import on_token_rows
from selftrain.training import Settings, train

CHAT = [Item(f"c{i}", "chat", f"Question {i}?", "Yes, " * (i + 1) + "truly.", finished=i != 1) for i in range(4)]
DOCUMENTS = [Item(f"d{i}", "documents", "Dear all,", f" this is note {i}.", finished=i != 1) for i in range(4)]


def settings(**changes):
    return Settings(
        **{
            **dict(lr=1e-2, schedule="constant", epochs=1, batch_size=2, warmup=0.0, weight_decay=0.0, max_grad_norm=1.0, seed=7),
            **changes,
        }
    )


def pairs(tokenizer):
    return [formats.preference_row(tokenizer, item, Item(item.id, "chat", item.prompt, f"No {item.id}."), 200) for item in CHAT]


@pytest.mark.parametrize("reference", [None, "base", "cycle_start"])
def test_every_training_is_under_autocast_not_the_first_alone(tiny, monkeypatch, reference):
    seen = []
    rows = pairs(tiny.tokenizer) if reference else [formats.training_row(tiny.tokenizer, item, 200) for item in CHAT]
    how = settings(beta=0.1) if reference else settings()

    def losses():
        tiny.fresh(1)
        return [h["loss"] for h in train(tiny, rows, how, reference=reference).history]

    exact = losses()
    monkeypatch.setattr(Resident, "device", torch.device("cuda"))  # so that training is set up as there; it runs where the model is
    monkeypatch.setattr(training, "_by_autocast", lambda resident: True)  # its weights are in float32, for which there is none
    tiny.plain_training = True
    hook = passes.inner_of(tiny.model).layers[0].register_forward_pre_hook(lambda *call: seen.append(torch.is_autocast_enabled("cpu")))
    try:
        first, second = losses(), losses()
    finally:
        hook.remove()
        tiny.plain_training = False
    assert seen and all(seen) and first == second != exact and first == pytest.approx(exact, rel=0.02)


def test_accelerates_mark_of_a_wrapped_model_goes_with_its_wrap(tiny):
    """accelerate marks a model that it has wrapped, and wraps no marked one."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    seen = []
    inner = tiny.model.get_base_model()  # a hook of the model itself is called before its wrapped forward
    hook = inner.register_forward_pre_hook(lambda *call: seen.append(torch.is_autocast_enabled("cpu")))
    AcceleratorState._reset_state(True)
    try:
        accelerator = Accelerator(mixed_precision="bf16", cpu=True)
        for _ in range(2):
            accelerator.prepare_model(tiny.model)(input_ids=torch.tensor([[5, 6, 7]]))
            tiny.clean()
            tiny.model(input_ids=torch.tensor([[5, 6, 7]]))
    finally:
        AcceleratorState._reset_state(True)
        hook.remove()
    assert seen == [True, False, True, False]


def test_chat_rows_carry_loss_on_the_answer_only(tiny):
    tokenizer = tiny.tokenizer
    for item in CHAT:
        row = formats.training_row(tokenizer, item, 500)
        head = formats.prompt_ids(tokenizer, "chat", item.prompt)
        assert row["input_ids"][: len(head)] == head and set(row["labels"][: len(head)]) == {IGNORED}
        said = row["labels"][len(head) :]
        assert tokenizer.decode(said, skip_special_tokens=True) == item.answer
        assert (said[-1] == tokenizer.eos_token_id) == item.finished == row["ends"]


def test_a_prompts_ids_are_the_callers_own(tiny):
    first = formats.prompt_ids(tiny.tokenizer, "chat", "Who are you?")
    kept = list(first)
    first.append(0)
    assert formats.prompt_ids(tiny.tokenizer, "chat", "Who are you?") == kept


def test_documents_carry_loss_on_every_token(tiny):
    for item in DOCUMENTS:
        row = formats.training_row(tiny.tokenizer, item, 500)
        assert row["labels"] == row["input_ids"]
        assert (row["input_ids"][-1] == tiny.tokenizer.eos_token_id) == item.finished


def test_a_row_cut_to_length_has_no_end_token(tiny):
    row = formats.training_row(tiny.tokenizer, CHAT[0], 20)
    assert len(row["input_ids"]) == 20 and not row["ends"] and row["input_ids"][-1] != tiny.tokenizer.eos_token_id


@pytest.mark.parametrize("items", [CHAT, DOCUMENTS], ids=["chat", "documents"])
def test_training_lowers_the_loss_and_leaves_nothing_behind(tiny, items):
    rows = [formats.training_row(tiny.tokenizer, item, 500) for item in items]
    base = tiny.model.get_base_model()
    before = {name: p.clone() for name, p in base.named_parameters() if ".default." not in name}
    tiny.fresh(1)
    log = train(tiny, rows, settings(epochs=4))
    assert log.steps == 8 and log.history[-1]["loss"] < log.history[0]["loss"]
    assert log.train_tokens == 4 * sum(label != IGNORED for row in rows for label in row["labels"])
    assert "forward" not in base.__dict__ and list(tiny.model.peft_config) == ["default"] and not tiny.model.training
    assert all(torch.equal(before[name], p) for name, p in base.named_parameters() if name in before)


def test_warmup_is_rounded_down_and_nothing_is_trained_at_rate_zero(tiny):
    rows = [formats.training_row(tiny.tokenizer, item, 500) for item in CHAT]
    tiny.fresh(1)
    assert train(tiny, rows, settings(warmup=0.05)).history[0]["learning_rate"] == pytest.approx(1e-2)


def test_the_first_batch_is_proven(tiny):
    rows = [formats.training_row(tiny.tokenizer, item, 500) for item in CHAT]
    rows[0]["ends"] = not rows[0]["ends"]
    tiny.fresh(1)
    with pytest.raises(AssertionError, match="end token"):
        train(tiny, rows, settings(batch_size=4))


def test_reset_in_place_is_the_same_in_any_history(tiny):
    tiny.fresh(5)
    first = {name: p.clone() for name, p in tiny.tensors().items()}
    address = {name: p.data_ptr() for name, p in tiny.tensors().items()}
    train(tiny, pairs(tiny.tokenizer), settings(beta=0.1), reference="base")
    assert not tiny.is_zero()
    tiny.fresh(5)
    assert tiny.is_zero() and all(torch.equal(first[n], p) and address[n] == p.data_ptr() for n, p in tiny.tensors().items())


def test_save_and_load_return_the_same_model(tiny, tmp_path):
    tiny.fresh(1)
    train(tiny, [formats.training_row(tiny.tokenizer, item, 500) for item in CHAT], settings())
    kept = {name: p.clone() for name, p in tiny.tensors().items()}
    tiny.save(tmp_path / "adapter")
    tiny.fresh(2)
    tiny.load(tmp_path / "adapter")
    assert all(torch.equal(kept[name], p) for name, p in tiny.tensors().items())


def answer_logps(tiny, rows, side, base):
    tokens = [{"input_ids": r["prompt_ids"] + r[side], "labels": [IGNORED] * len(r["prompt_ids"]) + r[side]} for r in rows]
    return [-total for total, _ in nll(tiny, tokens, base=base)]


def reference_seen(tiny, monkeypatch, reference):
    """Run one DPO step and return the reference log-probs that TRL used, by (prompt, answer)."""
    from trl import DPOTrainer

    seen, real = {}, DPOTrainer._compute_loss

    def spy(self, model, inputs, return_outputs):
        with torch.no_grad():
            chosen, rejected = self._compute_ref_log_probs(self.model, inputs)
        for ids, mask, value in zip(
            inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), torch.cat([chosen, rejected]).tolist(), strict=True
        ):
            seen[tuple(i for i, m in zip(ids, mask, strict=True) if m)] = value
        return real(self, model, inputs, return_outputs)

    monkeypatch.setattr(DPOTrainer, "_compute_loss", spy)
    rows = pairs(tiny.tokenizer)
    log = train(tiny, rows, settings(beta=0.1, batch_size=4), reference=reference)
    return rows, seen, log


@pytest.mark.parametrize("reference", ["cycle_start", "base"])
def test_the_reference_is_the_policy_that_was_named(tiny, monkeypatch, reference):
    """A trained adapter goes on with DPO: its reference log-probs are those of the cycle's start, or of the base, to 1e-5."""
    tiny.fresh(1)
    train(tiny, [formats.training_row(tiny.tokenizer, item, 500) for item in CHAT], settings(epochs=3))
    rows = pairs(tiny.tokenizer)
    expected = {side: answer_logps(tiny, rows, side, base=reference == "base") for side in ("chosen_ids", "rejected_ids")}
    other = answer_logps(tiny, rows, "chosen_ids", base=reference != "base")
    rows, seen, log = reference_seen(tiny, monkeypatch, reference)
    for side in expected:
        for row, value in zip(rows, expected[side], strict=True):
            assert seen[tuple(row["prompt_ids"] + row[side])] == pytest.approx(value, abs=1e-3, rel=1e-5)
    assert abs(other[0] - expected["chosen_ids"][0]) > 0.1
    first = log.history[0]["loss"]
    assert (first == pytest.approx(math.log(2), abs=1e-5)) == (reference == "cycle_start")


def test_at_cycle_0_continual_and_reinit_agree_exactly(tiny):
    made = []
    for reference in ("cycle_start", "base"):
        tiny.fresh(3)
        log = train(tiny, pairs(tiny.tokenizer), settings(beta=0.1, epochs=2), reference=reference)
        made.append((log.history, {name: p.clone() for name, p in tiny.tensors().items()}))
    assert made[0][0] == [
        {**a, **{k: v for k, v in b.items() if k.startswith("train_")}} for a, b in zip(*[m[0] for m in made], strict=True)
    ]
    assert all(torch.equal(made[0][1][name], made[1][1][name]) for name in made[0][1])
    assert made[0][0][0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_second_preference_cycle_finds_no_stale_reference(tiny):
    tiny.fresh(1)
    losses = [train(tiny, pairs(tiny.tokenizer), settings(beta=0.1), reference="cycle_start").history[0]["loss"] for _ in range(3)]
    assert losses == pytest.approx([math.log(2)] * 3, abs=1e-5)


def test_saturation_is_seen():
    early = [{"loss": 0.001, "rewards/margins": 9.0}] + [{"loss": 0.5, "rewards/margins": 1.0}] * 9
    assert training.TrainLog(10, 1, 1, early).saturated
    assert not training.TrainLog(10, 1, 1, early[1:] * 2).saturated
    assert not training.TrainLog(10, 1, 1, [{"loss": 0.001}] * 10).saturated


def test_a_trainer_that_holds_itself_is_gone_when_its_training_ends(tiny, monkeypatch):
    seen = []

    def holding_themselves(*args):
        class Cycle(on_token_rows(*args)):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.itself = self  # as Unsloth's do
                seen.append(weakref.ref(self))

        return Cycle

    monkeypatch.setattr(training, "on_token_rows", holding_themselves)
    gc.disable()
    try:
        train(tiny, [formats.training_row(tiny.tokenizer, item, 200) for item in CHAT], settings())
    finally:
        gc.enable()
    assert len(seen) == 1 and seen[0]() is None


def test_what_a_training_sets_aside_is_put_back_after_a_failure_too(tiny):
    before, inside = gc.get_freeze_count(), []

    def progress(step, steps):
        inside.append((gc.get_freeze_count() > before, {"parameters", "train"} <= vars(tiny.model).keys()))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny, [formats.training_row(tiny.tokenizer, item, 200) for item in CHAT], settings(), progress=progress)
    assert inside == [(True, True)] * 2
    assert gc.get_freeze_count() == before and not {"parameters", "train"} & vars(tiny.model).keys()


def test_a_settled_model_has_all_parameters_and_changes_its_mode_as_ever(tiny):
    tiny.model.eval()
    parameters = list(tiny.model.parameters())
    with training._settled(tiny.model):
        assert all(a is b for a, b in zip(tiny.model.parameters(), parameters, strict=True))
        for mode in (True, False, True):
            assert tiny.model.train(mode) is tiny.model
            assert {m.training for m in tiny.model.modules()} == {mode}
        tiny.model.eval()
        assert not any(m.training for m in tiny.model.modules())
    assert not {"parameters", "train"} & vars(tiny.model).keys()

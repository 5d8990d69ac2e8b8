"""Sentences of like length share a batch: each of them once, in random order, with little padding, same results."""

import pytest
import torch
from torch import nn

from nesskit import Examples, Task, TaskModel, TaskStream, TrainingSettings, fit
from nesskit.streams.batches import TaskData
from nesskit.streams.fields import Fields

CPU, LONGEST, SIZE = torch.device("cpu"), 24, 4


def sentences(count=210, seed=0, side="right"):
    """Token ids, the first of which says which sentence it is, and masks of 1 to 24 tokens."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (count, 1), generator=draw)
    position = torch.arange(LONGEST)
    mask = position < lengths if side == "right" else position >= LONGEST - lengths
    ids = torch.arange(count)[:, None].expand(-1, LONGEST).clone()
    return {"input_ids": ids, "attention_mask": mask.long()}


def data(count=210, company=False, change=lambda x: x, **options):
    examples = Examples(change(sentences(count, **options)), torch.arange(count) % 3)
    return TaskData(Task("t", ("a", "b", "c"), examples, examples, examples), 0, CPU, company)


def epoch(task_data, seed):
    return task_data.shuffled(SIZE, torch.Generator().manual_seed(seed))


def computed(task_data, batches):
    """How many positions a network is given, padding and all."""
    return sum(task_data.batch(task_data.train, rows).x["input_ids"].numel() for rows in batches)


@pytest.mark.parametrize("count", [1, 3, 4, 64, 65, 210])
@pytest.mark.parametrize("company", [False, True])
def test_an_epoch_has_every_sentence_once(count, company):
    batches = epoch(data(count, company), seed=1)
    assert torch.cat(list(batches)).sort().values.tolist() == list(range(count))
    assert all(len(rows) in {SIZE, SIZE + company, count % SIZE} for rows in batches)
    assert sum(len(rows) != SIZE for rows in batches) <= 1


def test_epochs_differ_as_their_seeds_do():
    one, again, other = ([rows.tolist() for rows in epoch(data(), seed)] for seed in (1, 1, 2))
    assert one == again
    assert one != other
    company = [{frozenset(rows) for rows in batches} for batches in (one, other)]
    assert len(company[0] & company[1]) < 3  # not the same batches in another order


def test_batches_come_in_random_order_of_length():
    task_data = data()
    lengths = task_data.train.x.lengths
    means = torch.stack([lengths[rows].float().mean() for rows in epoch(task_data, 3)])
    assert not torch.equal(means, means.sort().values)
    first, second = means[:26], means[26:]
    assert (first.mean() - second.mean()).abs() < means.std()


def test_less_padding_is_computed_with():
    task_data = data()
    real = int(task_data.train.x["attention_mask"].sum())
    together = computed(task_data, epoch(task_data, 5)) / real
    plain = data(company=True)
    apart = computed(plain, epoch(plain, 5)) / real
    assert apart > 1.5
    assert 1 <= together < 1.1


def test_lengths_are_counted_to_the_last_token():
    lengths = Fields(sentences(side="right")).lengths
    assert lengths.tolist() == Fields(sentences())["attention_mask"].sum(1).tolist()
    assert set(Fields(sentences(side="left")).lengths.tolist()) == {LONGEST}
    nothing = {"input_ids": torch.zeros(2, 3), "attention_mask": torch.zeros(2, 3)}
    assert Fields(nothing).lengths.tolist() == [0, 0]
    assert Fields({"pixels": torch.zeros(2, 3)}).lengths is None


@pytest.mark.parametrize(
    "change", [lambda x: x["input_ids"].float(), lambda x: {"ids": x["input_ids"]}], ids=["tensor", "no mask"]
)
def test_what_has_no_length_is_shuffled_as_ever(change):
    task_data = data(change=change)
    order = torch.randperm(210, generator=torch.Generator().manual_seed(7))
    assert [rows.tolist() for rows in epoch(task_data, 7)] == [rows.tolist() for rows in order.split(SIZE)]
    assert task_data.shortest_first(task_data.test) is None


class Mean(nn.Module):
    """A mean of the tokens' embeddings."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(300, 8), nn.Linear(8, 8)

    def forward(self, input_ids, attention_mask):
        real = attention_mask.unsqueeze(-1).float()
        return self.out((self.embedding(input_ids) * real).sum(1) / real.sum(1)).tanh()


def test_an_evaluation_does_not_depend_on_the_order():
    x, y = sentences(), torch.arange(210) % 3
    turn = torch.randperm(210, generator=torch.Generator().manual_seed(2))
    rows = {name: tensor[turn] for name, tensor in x.items()}
    results = []
    for test in (Examples(x, y), Examples(rows, y[turn])):
        stream = TaskStream("sentences", [Task("t", ("a", "b", "c"), Examples(x, y), test, test)])
        torch.manual_seed(0)
        settings = TrainingSettings(epochs=3, lr=0.5, batch_size=16, evaluation_batch_size=16)
        model = TaskModel(Mean(), 8, [3])
        results.append(fit(model, stream, "finetune", settings))
    assert results[0].accuracy.tolist() == results[1].accuracy.tolist()
    alone = [
        model.eval()({name: t[k : k + 1, :n] for name, t in x.items()}, 0) for k, n in enumerate(Fields(x).lengths)
    ]
    right = sum(int(logits.argmax()) == label for logits, label in zip(alone, y.tolist(), strict=True))
    assert results[0].accuracy[0, 0] == pytest.approx(100 * right / 210)
    losses = [[epoch.valid_loss for epoch in run.history] for run in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

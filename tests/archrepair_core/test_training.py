"""The training loop: it learns, touches its scope alone, averages, distils, and stops when it diverges."""

import copy
import math
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.course import MAX_EPOCHS
from archrepair_core.features import Features
from archrepair_core.margins import lost_margin
from archrepair_core.scope import NETWORK, in_scope, scoped_state
from archrepair_core.training import BOLD_STEP, NUM_TRIED_STEPS, TrainingPlan, settle_, train, try_steps
from tests.archrepair_core.given_rows import GivenRows


def make_task(items=120, views=2):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, size=items)
    inputs = rng.normal(size=(views, items, 6)).astype(np.float16) * 0.3
    inputs[:, np.arange(items), labels] += 2
    return Features((GivenRows(torch.from_numpy(inputs)),), torch.zeros(items, 3), torch.from_numpy(labels))


def plain(task):
    return next(task.plain(len(task), torch.device("cpu")))


def make_net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1)), nn.Linear(8, 3)
    ).eval()


def plan(**changes):
    return TrainingPlan(**{"epochs": 8, "deadline": math.inf, "seed": 0, "distillation": 0.0} | changes)


def accuracy(net, task):
    with torch.no_grad():
        return (net(plain(task)).argmax(1) == task.labels_N).float().mean().item()


def test_training_learns_the_task():
    net, task = make_net(), make_task()
    run = train(net, net, task, scope=NETWORK, plan=plan(epochs=30, learning_rate=0.1))
    assert not run.diverged
    assert run.losses[-1] < run.losses[0] / 2
    assert len(run.losses) == 30
    assert run.steps == 60
    assert accuracy(net, task) > 0.9


def test_only_the_scope_changes_and_the_rest_stays_in_eval_mode():
    net, task = make_net(), make_task()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train(net, net, task, scope=("1",), plan=plan(epochs=2, learning_rate=0.1))
    after = net.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"1.weight", "1.bias"}
    assert not any(module.training for module in net.modules())


def test_the_same_seed_gives_the_same_weights():
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        net = make_net()
        train(net, net, make_task(), scope=NETWORK, plan=plan(learning_rate=0.05))
        results.append(net.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_distillation_keeps_right_answers_closer_to_the_original():
    def drift(distillation):
        net, task = make_net(), make_task()
        with torch.no_grad():
            original = net(plain(task))
        right = original.argmax(1) == task.labels_N
        assert right.any()
        task = Features(task.parts, original, task.labels_N)
        train(net, net, task, scope=("1",), plan=plan(epochs=10, learning_rate=0.05, distillation=distillation))
        with torch.no_grad():
            moved = net(plain(task)).softmax(1) - original.softmax(1)
        return moved[right].abs().mean().item()

    assert drift(10.0) < 0.7 * drift(0.0)


def test_a_class_that_is_kept_more_moves_less():
    def drift(keep_K):
        net, task = make_net(), make_task()
        with torch.no_grad():
            original = net(plain(task))
        chosen = (original.argmax(1) == task.labels_N) & (task.labels_N == 0)
        task = Features(task.parts, original, task.labels_N)
        train(net, net, task, scope=("1",), plan=plan(learning_rate=0.05, distillation=3.0, keep_K=keep_K))
        with torch.no_grad():
            return (net(plain(task)).softmax(1) - original.softmax(1))[chosen].abs().mean().item()

    assert drift(torch.tensor([4.0, 1.0, 1.0])) < 0.9 * drift(None)


def test_only_a_margin_that_was_in_danger_can_be_lost():
    original = torch.tensor([[3.0, 0.0], [9.0, 0.0], [3.0, 0.0]])
    now = torch.tensor([[1.0, 0.0], [6.0, 0.0], [4.0, 0.0]])
    assert lost_margin(now, original, torch.zeros(3, dtype=torch.long)).tolist() == [2.0, 0.0, 0.0]


def test_a_diverging_run_starts_again_slower_and_ends_where_it_began_at_worst():
    net, task = make_net(), make_task()
    before = {name: value.clone() for name, value in scoped_state(net, NETWORK).items()}
    run = train(net, net, task, scope=NETWORK, plan=plan(learning_rate=1e9))
    assert run.diverged
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not train(net, net, task, scope=NETWORK, plan=plan(learning_rate=0.05)).diverged


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_the_learning_rate_follows_the_size_of_the_weights(size):
    task = make_task()
    net = nn.Linear(6, 3)
    with torch.no_grad():
        net.weight.fill_(size)
        net.bias.zero_()
    rate = try_steps(net, net, task, scope=NETWORK, plan=plan()).learning_rate
    assert rate == pytest.approx(5e-4 * size * math.sqrt(18) / min(1.0, _gradient_norm(net, task)), rel=0.5)


def _gradient_norm(net, task):
    loss = nn.functional.cross_entropy(net(plain(task)), task.labels_N)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]).norm().item()


def test_the_deadline_ends_training():
    net, task = make_net(), make_task()
    run = train(net, net, task, scope=NETWORK, plan=plan(deadline=time.monotonic() - 1, learning_rate=0.1))
    assert run.steps == 0


def test_a_deadline_long_before_the_end_keeps_what_was_learned_so_far():
    net, task = make_net(), make_task()
    asked = plan(epochs=5000, deadline=time.monotonic() + 0.5, learning_rate=0.1)
    before = {name: value.clone() for name, value in scoped_state(net, NETWORK).items()}
    run = train(net, net, task, scope=NETWORK, plan=asked)
    assert 0 < run.steps < 2500, "before the averaging begins"
    assert not torch.equal(scoped_state(net, NETWORK)["1.weight"], before["1.weight"])


def test_training_stops_when_it_gets_worse_and_keeps_the_last_that_was_no_worse_beyond_chance():
    net, task, seen = make_net(), make_task(), []

    def score():
        assert not any(module.training for module in net.modules())
        seen.append({name: value.clone() for name, value in net.state_dict().items()})
        return -abs(len(seen) - 3), 1.5  # best at the third look, then ever worse, at the fourth perhaps by chance

    run = train(net, net, task, scope=NETWORK, plan=plan(epochs=40, learning_rate=0.05, score=score))
    assert len(seen) == 4 + 10 + 1, "a quarter of the epochs worse than the best, and one"
    assert run.steps < 60
    assert all(torch.equal(seen[3][name], value) for name, value in net.state_dict().items())


def test_looking_at_validation_does_not_disturb_training():
    ends = []
    growing = iter(range(100))
    for score in (None, lambda: (next(growing), 0.0)):  # the last average is the best
        net = make_net()
        train(net, net, make_task(), scope=("0",), plan=plan(epochs=3, learning_rate=0.05, score=score))
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_without_epochs_training_fills_the_time_there_is():
    net, task = make_net(), make_task()
    started = time.monotonic()
    run = train(net, net, task, scope=NETWORK, plan=plan(epochs=None, deadline=started + 0.5, learning_rate=0.1))
    assert 1 <= len(run.losses) <= 200
    assert time.monotonic() - started < 5


def test_steps_that_were_slow_when_they_were_tried_do_not_end_training_early():
    net, task, delays = make_net(), make_task(), iter([0.3] * NUM_TRIED_STEPS)

    def tail(inputs):
        time.sleep(next(delays, 0.0))
        return net(inputs)

    asked = plan(epochs=None, deadline=time.monotonic() + 4.2, learning_rate=0.1)
    run = train(net, tail, task, scope=NETWORK, plan=asked)
    assert run.steps > 20, "ten would have filled the time at the speed of those that were tried"


def test_steps_that_get_faster_fill_the_time_there_is():
    net, task, delays = make_net(), make_task(), iter([0.1] * 12)

    def tail(inputs):
        time.sleep(next(delays, 0.01))
        return net(inputs)

    started = time.monotonic()
    run = train(net, tail, task, scope=NETWORK, plan=plan(epochs=None, deadline=started + 4, learning_rate=0.1))
    assert run.steps == MAX_EPOCHS * 2 or time.monotonic() - started > 3.2


def test_a_single_left_over_input_does_not_break_batch_norm():
    net, task = make_net(), make_task(items=65)
    assert train(net, net, task, scope=NETWORK, plan=plan(epochs=1, learning_rate=0.01)).steps == 2


def test_a_new_batch_norm_knows_what_it_saw_after_a_single_step():
    net = nn.Sequential(nn.Sequential(OrderedDict(branch=nn.BatchNorm1d(6))), nn.Linear(6, 3))
    task = make_task(views=1)
    train(net, net, task, scope=NETWORK, plan=plan(epochs=1, batch_size=len(task), learning_rate=1e-3))
    torch.testing.assert_close(net[0].branch.running_mean, plain(task).mean(0))
    torch.testing.assert_close(net[0].branch.running_var, plain(task).var(0))
    assert net[0].branch.momentum == 0.1


def test_settling_gives_new_batch_norms_their_statistics_and_trains_nothing():
    net = nn.Sequential(nn.Sequential(OrderedDict(branch=nn.BatchNorm1d(6))), nn.Linear(6, 3))
    task, before = make_task(items=64, views=1), copy.deepcopy(net.state_dict())
    settle_(net, net, task, scope=NETWORK, seed=0)
    torch.testing.assert_close(net[0].branch.running_mean, plain(task).mean(0))
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())
    assert not net.training


def test_scope_names_whole_modules():
    assert in_scope("layer1.0.conv.weight", ("layer1",))
    assert in_scope("layer1", ("layer1",))
    assert not in_scope("layer10.weight", ("layer1",))
    assert in_scope("anything", NETWORK)


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_a_bold_step_moves_every_weight_by_a_share_of_their_root_mean_square(size):
    net = make_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(size)
    found = try_steps(net, net, make_task(), scope=NETWORK, plan=plan(bold=True))
    assert found.learning_rate == pytest.approx(BOLD_STEP * size, rel=1e-4)


@pytest.mark.parametrize("bold", [False, True])
def test_weights_of_nothing_can_leave_it(bold):
    net = nn.Linear(6, 3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    train(net, net, make_task(), scope=NETWORK, plan=plan(epochs=3, bold=bold))
    assert net.weight.abs().max() > 0


def test_a_bold_training_goes_further_in_as_many_steps():
    losses = {}
    for bold in (False, True):
        net, task = make_net(), make_task()
        losses[bold] = train(net, net, task, scope=NETWORK, plan=plan(epochs=3, bold=bold)).losses[-1]
    assert losses[True] < losses[False]

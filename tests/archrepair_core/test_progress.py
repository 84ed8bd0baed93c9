from archrepair_core.progress import Narrator


class Expensive:
    """A loss on a GPU: to read it is to wait."""

    reads = 0

    def __float__(self) -> float:
        self.reads += 1
        return 0.5


def test_a_loss_is_read_only_when_it_is_told():
    told, loss = [], Expensive()
    narrator = Narrator(told.append)
    narrator.begin("repairing", "repairing")
    tell = narrator.during("repairing", budget_seconds=100)
    for step in range(1, 1001):
        tell(f"layer1: step {step}", step=step, total_steps=1000, loss=loss)
    assert [(progress.step, progress.total_steps, progress.loss) for progress in told[1:2]] == [(1, 1000, 0.5)]
    assert loss.reads == len(told) - 1 < 100
    tell("something else")
    assert told[0].loss is None

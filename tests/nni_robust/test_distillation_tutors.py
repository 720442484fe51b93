"""Tutors are learned: planted ones are found; the released code's form learns nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from nni_robust.data.seeding import generator
from nni_robust.distillation import (
    MapConfig,
    MapSession,
    TutorMatrix,
    distances,
    find_taps,
    fixed_mapping,
)
from nni_robust.distillation.mappings import relocate
from nni_robust.errors import UserError
from nni_robust.relaxation import temperature


def learn(tutors: TutorMatrix, distance: Tensor, steps: int, **adam: float) -> Tensor:
    optimizer = torch.optim.Adam([tutors.logits], lr=0.1, **adam)
    for step in range(steps):
        weights = tutors.sample(temperature(step, steps), generator(0, "draw", step))
        optimizer.zero_grad()
        tutors.loss(distance, weights).backward()
        optimizer.step()
    return tutors.harden()


def planted(students: int, teachers: int, gap: float) -> tuple[Tensor, Tensor]:
    """Distances as measured (0.15 to 0.25), in which one teacher of each student is nearer."""
    noise = generator(7, "planted")
    distance = 0.15 + 0.1 * torch.rand(students, teachers, generator=noise)
    best = torch.randint(teachers, (students,), generator=noise)
    rows = torch.arange(students)
    distance[rows, best] = torch.inf
    distance[rows, best] = distance.min(1).values - gap
    return distance, best


@pytest.mark.parametrize("gap", [0.05, 0.1, 0.2])
def test_planted_tutor_of_every_layer_within_200_steps(gap: float) -> None:
    distance, best = planted(28, 31, gap)
    assert torch.equal(learn(TutorMatrix(28, 31), distance, 200), best)


def test_decay_beats_the_paper_s_scale_and_not_ours() -> None:
    """With 1 / (n_s n_t) and decay 1e-4 the gradients are lost; hence no decay of tutors."""
    distance, best = planted(28, 31, 0.1)
    paper = learn(TutorMatrix(28, 31, "paper"), distance, 400, weight_decay=1e-4)
    assert float((paper == best).float().mean()) < 0.5
    free = learn(TutorMatrix(28, 31, "paper"), distance, 400)
    assert float((free == best).float().mean()) > 0.9


def test_released_reduction_gives_no_gradient_at_all() -> None:
    """The released code multiplies weights that sum to one with a norm over all teachers."""
    distance, _ = planted(5, 7, 0.1)
    tutors = TutorMatrix(5, 7, "released")
    weights = tutors.sample(1.0, generator(0))
    loss = tutors.loss(distance, weights)
    loss.backward()
    assert torch.count_nonzero(tutors.logits.grad) == 0
    by_hand = sum((float(distance[i].sum()) ** 0.5 * weights[i]).mean() for i in range(5))
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    others = TutorMatrix(5, 7)
    others.loss(distance, others.sample(1.0, generator(0))).backward()
    assert (others.logits.grad.abs().sum(1) > 0).all()


def test_reductions_are_multiples_of_one_another() -> None:
    distance, _ = planted(5, 7, 0.1)
    ours, paper = TutorMatrix(5, 7), TutorMatrix(5, 7, "paper")
    weights = ours.sample(1.0, generator(0)).detach()
    assert float(ours.loss(distance, weights)) == pytest.approx(
        float((weights * distance).sum(1).mean())
    )
    assert float(ours.loss(distance, weights)) == pytest.approx(
        7 * float(paper.loss(distance, weights))
    )


def test_debias_takes_the_advantage_from_a_flat_map() -> None:
    """Teacher 0 is near to every layer, so it wins; without its mean the better match does."""
    distance = torch.tensor([[0.1, 0.2, 0.6], [0.1, 0.6, 0.2]])
    plain = learn(TutorMatrix(2, 3), distance, 200)
    fair = learn(TutorMatrix(2, 3, debias=True), distance, 200)
    assert plain.tolist() == [0, 0]
    assert fair.tolist() == [1, 2]


def test_start_is_uniform_and_ties_go_to_the_first() -> None:
    tutors = TutorMatrix(3, 4)
    assert tutors.harden().tolist() == [0, 0, 0]
    assert tutors.entropy() == pytest.approx(math.log(4))
    assert tutors.margin().tolist() == pytest.approx([0, 0, 0])
    weights = tutors.sample(0.5, generator(1))
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    torch.testing.assert_close(weights, tutors.sample(0.5, generator(1)))


def test_gumbel_draws_have_the_probabilities_of_the_logits() -> None:
    tutors = TutorMatrix(1, 3)
    with torch.no_grad():
        tutors.logits.copy_(torch.tensor([[0.0, 1.0, 2.0]]))
    noise = generator(3)
    wins = torch.stack([tutors.sample(1.0, noise).argmax(1) for _ in range(4000)])
    share = torch.bincount(wins.flatten(), minlength=3) / 4000
    torch.testing.assert_close(share, tutors.probabilities()[0], atol=0.03, rtol=0)


def test_a_student_finds_the_layers_it_imitates_in_real_networks() -> None:
    """Student layers that compute what chosen teacher layers compute get these as tutors."""
    torch.manual_seed(0)

    def convs(number: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(number)))

    teacher, student = convs(6), convs(3)
    right = [0, 1, 2]
    for layer in right:
        student[layer].load_state_dict(teacher[layer].state_dict())
    x, tutors = torch.rand(16, 3, 8, 8), TutorMatrix(3, 6)
    maps = []
    for network in (student, teacher):
        with (
            torch.no_grad(),
            MapSession(network, find_taps(network), MapConfig(size=8)) as session,
            session.recording(),
        ):
            network(x)
            maps.append(session.collect())
    distance = distances(*maps)
    gap = min(float(distance[i][torch.arange(6) != i].min() - distance[i, i]) for i in range(3))
    assert gap > 0
    # The loss's weight in a search; Adam makes the steps as large for a small gap as for a wide.
    assert learn(tutors, distance * 30, 400).tolist() == right


def test_fixed_mappings() -> None:
    students, teachers = [8, 8, 4, 4], [16, 16, 8, 8, 4, 4]
    assert fixed_mapping("none", students, teachers) == []
    assert fixed_mapping("last", students, teachers) == [(3, 5)]
    assert len(fixed_mapping("average", students, teachers)) == 24
    assert fixed_mapping("proportional", students, teachers) == [(0, 0), (1, 2), (2, 3), (3, 5)]
    # Two stages onto three: first onto first, last onto last.
    assert fixed_mapping("same-stage", students, teachers) == [(0, 0), (1, 1), (2, 4), (3, 5)]
    drawn = fixed_mapping("random", students, teachers, seed=1)
    assert drawn == fixed_mapping("random", students, teachers, seed=1)
    assert len({tuple(fixed_mapping("random", students, teachers, seed=s)) for s in range(9)}) > 5
    with pytest.raises(UserError, match="did you mean 'average'"):
        fixed_mapping("averag", students, teachers)


def test_layers_of_another_depth_are_found_by_their_share_of_it() -> None:
    assert relocate(["a", "b", "c"], ["b", "c"]) == [1, 2]
    assert relocate(["x", "y", "z"], ["a", "b", "c", "d", "e"]) == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((0, 3), "at least one layer"), ((2, 3, "papers"), "'papers' is not allowed")],
)
def test_impossible_tutors(arguments, says: str) -> None:
    with pytest.raises(UserError, match=says):
        TutorMatrix(*arguments)

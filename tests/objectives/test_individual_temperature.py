import math

import pytest
import torch

from clapkit.errors import ConfigError
from clapkit.objectives.individual_temperature import IndividualTemperatures, check_budget
from clapkit.objectives.sogclr import build

ROWS = 6
NO_POSITIVES = torch.eye(ROWS, dtype=torch.bool)


def cosines(seed=0):
    return 2 * torch.rand(ROWS, ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def temperatures(**options):
    known = {"start": 0.1, "rho": None, "lowest": 0.01, "highest": 1.0, "lr": 0.01, "momentum": 0.9}
    return IndividualTemperatures(ROWS, **known | options).double()


def parts(similarity, tau):
    """log g and ``mean w h / tau`` [B], and the divergence of the negatives from an even softmax [B]."""
    difference = (similarity - similarity.diagonal()[:, None])[~NO_POSITIVES].view(ROWS, ROWS - 1)
    logits = difference / tau[:, None]
    share = logits.softmax(dim=1)
    divergence = (share * (share * (ROWS - 1)).log()).sum(dim=1)
    return logits.logsumexp(dim=1) - math.log(ROWS - 1), (share * logits).sum(dim=1), divergence


@pytest.mark.parametrize("rho", [0.2, 1.0])
def test_the_gradient_is_the_budget_less_the_divergence_from_an_even_softmax(rho):
    similarity, tau = cosines(), torch.linspace(0.05, 0.8, ROWS, dtype=torch.float64).requires_grad_()
    log_g, pushes, divergence = parts(similarity, tau)
    (gradient,) = torch.autograd.grad((tau * log_g + rho * tau).sum(), tau)
    slack = temperatures(rho=rho).slack(log_g, pushes, torch.full((ROWS,), ROWS - 1))
    torch.testing.assert_close(slack, gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slack, rho - divergence, rtol=1e-9, atol=1e-12)


def settled(rho):
    """Temperatures of both sides after many steps on one batch, and its cosines."""
    objective = build(num_rows=ROWS, individual=True, gamma=1.0, rho=rho, tau=0.5, tau_lr=0.2).double()
    for _ in range(120):
        objective.one_direction(cosines().requires_grad_(), NO_POSITIVES, torch.arange(ROWS), side=0)
        objective.after_step()
    return objective.individual.tau


def test_a_temperature_rests_where_its_negatives_have_the_divergence_of_the_budget():
    tau = settled(None)
    *_, divergence = parts(cosines(), tau[0])
    expected = torch.full((ROWS,), 0.4 * math.log(ROWS - 1), dtype=torch.float64)
    torch.testing.assert_close(divergence, expected, rtol=0, atol=1e-4)
    assert (tau[1] == 0.5).all()  # nobody looked at the clips


def test_above_the_largest_divergence_of_a_batch_every_gradient_falls_to_colder():
    # The reason for refusing such a budget: rho - KL > 0 whatever the temperature.
    number = torch.full((ROWS,), ROWS - 1)
    for value in (0.01, 0.1, 1.0):
        log_g, pushes, _ = parts(cosines(), torch.full((ROWS,), value, dtype=torch.float64))
        assert (temperatures(rho=math.log(ROWS - 1) + 0.01).slack(log_g, pushes, number) > 0).all()


def test_the_budget_follows_the_negatives_of_a_row_unless_given():
    like = torch.zeros(3, dtype=torch.float64)
    number = torch.tensor([1, 5, 23])
    found = temperatures().budget(number, like=like).tolist()
    assert found == pytest.approx([0, 0.4 * math.log(5), 0.4 * math.log(23)])
    assert temperatures(rho=0.7).budget(number, like=like).tolist() == [0.7] * 3


def test_a_step_is_clipped_averaged_and_kept_in_its_range():
    module = temperatures(start=0.2, lr=0.1)
    index, slack = torch.tensor([4, 0]), torch.tensor([-9.0, 1.0], dtype=torch.float64)
    first = module.moved(slack, index, 1)
    # 0.9 * -5 and 0.9 * 1; from 0.2 by 0.45 up, and by 0.09 down.
    assert first["gradient"].tolist() == pytest.approx([-4.5, 0.9])
    assert first["tau"].tolist() == pytest.approx([0.65, 0.11])
    for name, values in first.items():
        module.get_buffer(name)[1, index] = values
    second = module.moved(slack, index, 1)
    # 0.1 * -4.5 - 4.5 = -4.95 and 0.1 * 0.9 + 0.9 = 0.99; 1.145 is above 1, and 0.011 is not below 0.01.
    assert second["gradient"].tolist() == pytest.approx([-4.95, 0.99])
    assert second["tau"].tolist() == pytest.approx([1.0, 0.011])
    assert torch.equal(module.tau[0], torch.full((ROWS,), 0.2).double())


def test_a_budget_beyond_the_batch_is_refused_with_one_that_fits():
    for rho, batch_size in ((None, 2), (0.0, 3), (3.13, 24)):
        check_budget(rho, batch_size)
    with pytest.raises(ConfigError, match=r"rho=6: expected 0 to less than 3\.14: .*ln\(24-1\).*set rho=1\.25"):
        check_budget(6, 24)
    with pytest.raises(ConfigError, match="rho=-1: expected 0"):
        check_budget(-1, 24)

import copy

import numpy as np
import torch

from clapkit.objectives.draws import Draws, by_row

INDEX = torch.tensor([7, 2, 9, 4])


def numbers(draws, index=INDEX):
    return draws.generator(index).random(5).tolist()


def make(seed=0):
    torch.manual_seed(seed)
    return Draws()


def test_a_batch_has_the_same_draws_until_the_step_is_taken():
    draws = make()
    first = numbers(draws)
    assert numbers(draws) == first
    draws.advance()
    assert numbers(draws) != first


def test_draws_do_not_depend_on_the_order_of_the_batch_but_on_what_is_in_it():
    draws = make()
    assert numbers(draws, INDEX.flip(0)) == numbers(draws)
    assert numbers(draws, INDEX + 1) != numbers(draws)


def test_torch_generators_are_neither_asked_nor_moved():
    draws = make()
    first, state = numbers(draws), torch.get_rng_state()
    torch.rand(3)
    assert numbers(draws) == first
    torch.set_rng_state(state)
    draws.advance()
    numbers(draws)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_restored_state_goes_on_where_it_was_left():
    draws = make()
    for _ in range(3):
        draws.advance()
    restored = make(seed=1)
    assert numbers(restored) != numbers(draws)
    restored.load_state_dict(draws.state_dict())
    other = copy.deepcopy(draws)
    for source in (draws, restored, other):
        source.advance()
    assert numbers(draws) == numbers(restored) == numbers(other)


def test_what_is_drawn_follows_its_row():
    like = torch.zeros(0, dtype=torch.float64)
    drawn = np.arange(8.0).reshape(4, 2)
    # The rows 7, 2, 9, 4 are the third, first, fourth and second by number.
    assert by_row(drawn, INDEX, like=like).tolist() == [[4, 5], [0, 1], [6, 7], [2, 3]]
    order = torch.tensor([3, 0, 2, 1])
    assert torch.equal(by_row(drawn, INDEX[order], like=like), by_row(drawn, INDEX, like=like)[order])

import dataclasses
import math

import numpy as np
import pytest
import torch
from dense import graph_input, random_model

from gnnrec.encoders.base import Block
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.heads import ItemBias, ResidualIds, ScoreCalibration, SpectralChannel, standardise


def set_to(parameter, value):
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value).expand_as(parameter))


def test_item_bias_is_the_smoothed_log_count():
    x, bias = graph_input(0), ItemBias(6)
    set_to(bias.slope, 0.7)
    set_to(bias.log_prior, -0.4)
    set_to(bias.text.weight, torch.linspace(-0.3, 0.5, 6))
    text, w = x.text.numpy().astype(np.float64), np.linspace(-0.3, 0.5, 6)
    prior = np.exp(np.clip(-0.4 + 4.0 * text @ w, -8.0, 6.0))
    expected = 0.7 * np.log(x.item_degrees.numpy() + prior)
    np.testing.assert_allclose(bias(x).detach().numpy(), expected, atol=1e-5)


def test_item_bias_without_text_orders_by_count():
    x = graph_input(1, text=False)
    for text_dim in (0, 6):
        bias = ItemBias(text_dim)
        set_to(bias.slope, 2.0)
        set_to(bias.log_prior, math.log(3.0))
        expected = 2.0 * torch.log(x.item_degrees + 3.0)
        torch.testing.assert_close(bias(x).detach(), expected)


def test_item_bias_stays_finite_for_extreme_priors():
    x = graph_input(2)  # has an isolated item
    for log_prior in (-1000.0, 1000.0):
        bias = ItemBias(6)
        set_to(bias.log_prior, log_prior)
        assert torch.isfinite(bias(x)).all()


def test_calibration_formula_and_zero_for_isolated_users():
    x, calibration = graph_input(3), ScoreCalibration((0.5, 0.25))
    set_to(calibration.degree_slope, torch.tensor([0.3, -0.2]))
    weights = calibration(x).detach()
    degree = torch.log1p(x.user_degrees)[:, None]
    expected = torch.tensor([0.5, 0.25]) * torch.exp(degree * torch.tensor([0.3, -0.2]))
    assert x.user_degrees[-1] == 0 and (weights[-1] == 0).all()
    torch.testing.assert_close(weights[:-1], expected[:-1])
    rows = torch.tensor([8, 2, 2])
    torch.testing.assert_close(calibration(x, rows).detach(), weights[rows])


def test_calibration_sees_the_kind_of_graph():
    small, large = graph_input(4), graph_input(4, n_users=30, n_items=60)
    torch.manual_seed(0)
    calibration = ScoreCalibration((0.5, 0.25))
    user = [x.user_degrees.argmax()[None] for x in (small, large)]
    calibration.context[2].weight.data.normal_()
    hidden = torch.tanh(
        calibration.context[0](
            torch.cat([torch.log1p(small.user_degrees[user[0]]) / 3.0, small.context])[None]
        )
    )
    expected = torch.tensor([[0.5, 0.25]]) * torch.exp(hidden @ calibration.context[2].weight.T)
    torch.testing.assert_close(calibration(small, user[0]), expected)
    assert not torch.allclose(calibration(small, user[0]), calibration(large, user[1]), rtol=1e-2)


def channel_scores(block):
    return (block.users - block.mean_user) @ block.items.T


def test_spectral_scores_do_not_depend_on_the_signs_of_singular_vectors():
    x, channel = graph_input(5), random_model("lightgcn").spectral
    before = channel_scores(channel(x)).detach()
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    s = x.spectrum
    x.spectrum = dataclasses.replace(s, user=s.user * signs, item=s.item * signs)
    del x.spectral_user_mean
    after = channel(x)
    torch.testing.assert_close(channel_scores(after), before, atol=1e-5, rtol=1e-5)


def test_spectral_response_of_identity_rebuilds_the_rescaled_interactions():
    x, channel = graph_input(6), SpectralChannel()
    set_to(channel.response, torch.linspace(0.0, 1.0, len(channel.response)))
    set_to(channel.item_exponent, 0.5)
    block = channel(x)
    # D_u^1/2 (D_u^-1/2 R D_i^-1/2) D_i^1/2 = R
    interactions = torch.from_numpy(x.graph.user_items.toarray())
    torch.testing.assert_close(block.users @ block.items.T, interactions, atol=1e-4, rtol=0)
    assert (block.users[-1] == 0).all() and (block.items[-1] == 0).all()


def test_spectral_response_is_piecewise_linear():
    x, channel = graph_input(7), SpectralChannel()
    knots = torch.rand(len(channel.response), generator=torch.Generator().manual_seed(0))
    set_to(channel.response, knots)
    set_to(channel.item_exponent, 0.0)
    sigma = x.spectrum.sigma.numpy()
    h = np.interp(sigma, np.linspace(0, 1, len(knots)), knots.numpy())
    expected = x.spectrum.user.numpy() * h * np.sqrt(x.user_degrees.numpy())[:, None]
    np.testing.assert_allclose(channel(x).users.detach().numpy(), expected, atol=1e-6)


def test_spectral_rows_and_mean_are_consistent():
    x, channel = graph_input(8), random_model("lightgcn").spectral
    every, rows = channel(x), torch.tensor([7, 0, 7])
    torch.testing.assert_close(channel(x, rows).users, every.users[rows])
    mean = (x.user_degrees / x.user_degrees.sum()) @ every.users
    torch.testing.assert_close(every.mean_user, mean, atol=1e-6, rtol=1e-4)


def test_directions_of_singular_value_zero_say_nothing():
    # Two kinds of users: the matrix has rank two, all further singular vectors are arbitrary.
    matrix = np.zeros((8, 10))
    matrix[:4, :6], matrix[4:, 4:] = 1, 1
    x = GraphInput(BipartiteGraph(*np.nonzero(matrix), 8, 10), spectral_rank=8)
    channel = SpectralChannel()
    set_to(channel.response, 1.0)
    scores = channel_scores(channel(x)).detach()
    torch.testing.assert_close(scores[:4], scores[:1].expand(4, 10), atol=1e-3, rtol=0)
    torch.testing.assert_close(scores[4:], scores[4:5].expand(4, 10), atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_standardised_scores_have_unit_spread_over_the_reference_users(scale):
    generator = torch.Generator().manual_seed(0)
    users = scale * (torch.randn(30, 4, generator=generator) + 1.0)
    items = torch.randn(50, 4, generator=generator) + 2.0
    weights = torch.randint(0, 9, (50,), generator=generator).float()
    mean = users[:20].mean(dim=0)
    block = Block(torch.cat([users, users[20:]]), items, mean)  # the last ten are the reference
    scaled, shifted = standardise(block, 10, weights)
    assert scaled.shape == users.shape
    scores, share = (scaled @ shifted.T).double(), (weights / weights.sum()).double()
    torch.testing.assert_close(scores @ share, torch.zeros(30).double(), atol=1e-5, rtol=0)
    spread = (scores.square() @ share)[20:].mean()
    assert float(spread) == pytest.approx(1.0, rel=1e-3)
    # Nothing but scale, the mean user and a shift for each user has changed.
    raw = ((users - mean) @ items.T).double()
    raw = raw - (raw @ share)[:, None]
    torch.testing.assert_close(scores / scores.norm(), raw / raw.norm(), atol=1e-6, rtol=0)


def test_standardise_survives_empty_references_and_equal_users():
    block = Block(torch.ones(5, 3), torch.randn(4, 3), torch.ones(3))
    for n_reference, weights in ((0, torch.ones(4)), (2, torch.ones(4)), (2, torch.zeros(4))):
        users, items = standardise(block, n_reference, weights)
        assert len(users) == 5 - n_reference
        assert torch.isfinite(users).all() and torch.isfinite(items).all()


def test_residual_ids_start_at_zero_and_pad_items_that_arrive_later():
    residual = ResidualIds(3, 2)
    assert torch.equal(residual(5), torch.zeros(5, 2))
    set_to(residual.items, torch.arange(6.0).view(3, 2))
    set_to(residual.gate, 2.0)
    assert residual(5).tolist() == [[0, 2], [4, 6], [8, 10], [0, 0], [0, 0]]


@pytest.mark.parametrize("encoder", ["lightgcn", "graphsage"])
def test_residual_ids_change_no_score_at_first_and_get_a_gradient(encoder):
    x = graph_input(9)
    without, model = random_model(encoder), random_model(encoder, n_target_items=14)
    with torch.no_grad():
        model.load_state_dict(without.state_dict(), strict=False)
        model.residual.items.zero_()
        model.residual.gate.fill_(1.0)
    vectors, plain = model(x), without(x)
    assert torch.equal(vectors.users @ vectors.items.T, plain.users @ plain.items.T)
    (vectors.users @ vectors.items.T)[0, 3].backward()
    gradient = model.residual.items.grad
    assert gradient[3].abs().min() > 0
    assert gradient[:3].abs().max() == 0 == gradient[4:].abs().max()

import pytest
import torch
from scipy import stats

from dina_lrm.errors import ValueRangeError
from dina_lrm.noise import Beta, Constant, LogitNormal, Mode, Power, Stratified, Uniform

LAWS = [
    Uniform(),
    Uniform(0.2, 0.7),
    LogitNormal(),
    LogitNormal(0.5, 0.8),
    Mode(),
    Mode(-0.5),
    Constant(0.3),
    Power(2.0),
    Beta(2.0, 5.0),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("law", LAWS + [Stratified(law) for law in LAWS], ids=repr)
def test_levels_are_noise_levels_and_follow_the_seed(law):
    levels = law.sample(4096, generator())
    assert levels.shape == (4096,) and levels.dtype == torch.float32
    assert levels.min() >= 0 and levels.max() <= 1
    assert torch.equal(levels, law.sample(4096, generator()))


@pytest.mark.parametrize("law", [law for law in LAWS if not isinstance(law, Constant)], ids=repr)
def test_stratified_draws_the_same_law_with_less_spread(law):
    plain = torch.stack([law.sample(16, generator(i)).mean() for i in range(400)])
    even = torch.stack([Stratified(law).sample(16, generator(i)).mean() for i in range(400)])
    assert even.std() < 0.25 * plain.std()
    assert (even.mean() - plain.mean()).abs() < 5 * plain.std() / 20


@pytest.mark.parametrize(
    ("law", "cdf"),
    [
        (Uniform(0.2, 0.7), stats.uniform(0.2, 0.5).cdf),
        (Power(2.0), lambda x: x**0.5),
        (Beta(2.0, 5.0), stats.beta(2, 5).cdf),
        (Beta(0.5, 0.5), stats.beta(0.5, 0.5).cdf),
        (LogitNormal(0.5, 0.8), lambda x: stats.norm(0.5, 0.8).cdf(stats.logistic.ppf(x))),
    ],
    ids=repr,
)
def test_laws_are_what_they_are_called(law, cdf):
    result = stats.kstest(law.sample(4000, generator(1)).numpy(), cdf)
    assert result.pvalue > 1e-3


def test_mode_is_the_published_formula():
    u = torch.rand(1000, generator=generator())
    published = 1 - u - 1.29 * (torch.cos(torch.pi / 2 * u).square() - 1 + u)
    assert torch.allclose(published.sort().values, Mode(1.29).quantile(u.flip(0)).sort().values, atol=0.2)
    assert torch.allclose(Mode(1.29).quantile(1 - u), published, atol=1e-5)


@pytest.mark.parametrize(
    "law",
    [
        lambda: Uniform(0.7, 0.2),
        lambda: Constant(1.5),
        lambda: Power(0.0),
        lambda: Beta(0.1, 1.0),
        lambda: LogitNormal(0.0, 0.0),
        lambda: Mode(3.0),
    ],
)
def test_impossible_laws_are_refused(law):
    with pytest.raises(ValueRangeError):
        law()

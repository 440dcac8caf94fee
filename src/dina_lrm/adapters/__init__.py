"""Reward models in the forms that trainers and samplers call.

Each module is one outside world, and imports none of it: what it calls is written down in its documentation, and a contract
test holds it. Every adapter takes any `RewardFunction`, a model in this process or a `RewardClient`, and an `Asking` that
says which noise is looked at; the seed is an argument, 0 unless said, so candidates of one size meet the same noise.

A failure is never a reward of zero. Where the outside form has a word for a missing reward (`None`, an error beside the
results), an item that cannot be scored gets it; where it has none, the call raises. When no item could be scored it
always raises.

| module | what it fits |
|---|---|
| `flow_grpo` | reward factories of flow_grpo, on images or latents, and the form of its fork for latent reward models |
| `verl_omni` | `compute_score`, with a model in the process or as client of wire protocol v1 |
| `flow_factory` | a `PointwiseRewardModel` |
| `unirl` | `POST /score`, both ends |
| `trl` | a GRPO reward function, and that of DDPO |
| `diffusers_callback` | `callback_on_step_end`: the noisy state inside a sampler, scored as it stands |
| `diffusers_search` | the same: samples that are pruned, resampled or guided by it while the pipeline runs |
"""

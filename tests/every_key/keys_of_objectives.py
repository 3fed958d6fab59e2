"""The keys of every objective."""

from __future__ import annotations

from observed import Case, first, steps

SEVERAL_STEPS = {"train.steps": 2, "train.schedule": "constant", "train.warmup": 0}
KTO = {"objective.loss": "kto", "train.batch_size": 6}
AGAIN = {**SEVERAL_STEPS, "objective.num_iterations": 2}
HELD = {**SEVERAL_STEPS, "objective.beta": 0.5}
ENDING = {"objective.max_completion_length": 60, "objective.num_generations": 6}
"""Long enough for some completions to end by themselves."""
FITTED = {"adapter": {}, "objective.way": "features"}

PREFERENCE = {
    "loss": Case("hinge", first),
    "beta": Case(0.5, first),
    "label_smoothing": Case(0.2, first),
    "f_divergence": Case("forward_kl", steps, SEVERAL_STEPS),
    "alpha": Case(2.0, steps, {**SEVERAL_STEPS, "objective.f_divergence": "alpha_divergence"}),
    "gamma": Case(1.5, first, {"objective.loss": "simpo"}),
    "nll_weight": Case(0.5, first),
    "desirable_weight": Case(0.5, first, KTO),
    "undesirable_weight": Case(0.5, first, KTO),
    "reference": Case("online", first),
}

POLICY = {
    "rewards": Case(["@/mine.py:length"], first),
    "environment": Case("@/mine.py:Echo", first),
    "max_turns": Case(1, first, {**ENDING, "objective.environment": "@/mine.py:Echo"}),
    "reward_weights": Case([3.0], first),
    "gold": Case("nothing", first, {"objective.rewards": ["exact"]}),
    "sampler": Case("http://localhost:9", steps),
    "reward_seconds": Case(0.01, first, {"objective.rewards": ["@/mine.py:slow"]}),
    "preset": Case("dr_grpo", first),
    "num_generations": Case(2, first),
    "max_completion_length": Case(3, first),
    "temperature": Case(0.5, first),
    "top_p": Case(0.3, first),
    "top_k": Case(2, first),
    "advantage": Case("group_mean", first),
    "importance_sampling_level": Case("product", first),
    "clipping": Case("cispo", first),
    "aggregation": Case("tokens", first, ENDING),
    "epsilon": Case(1e-6, steps, AGAIN),
    "epsilon_high": Case(1e-6, steps, AGAIN),
    "beta": Case(0.5, first),
    "kl": Case("k1", first, {"objective.beta": 0.5}),
    "use_bias_correction_kl": Case(False, steps, HELD),
    "kl_in": Case("reward", steps, HELD),
    "dynamic_sampling": Case(True, first, {"objective.rewards": ["@/mine.py:flat"]}),
    "overlong_buffer": Case(0.5, first, ENDING),
    "num_iterations": Case(2, first),
    "max_sampling_gap": Case(1e-12, first),
    "mask_truncated_completions": Case(True, first),
}

CLASSIFY = {
    "way": Case("head", first, {"adapter": {}}),
    "classes": Case("several", first),
    "labels": Case(["spam", "ham"], first),
    "class_weights": Case("balanced", first),
    "fit": Case("svm", first, FITTED),
    "fit_strength": Case(0.01, first, FITTED),
}

REWARD = {"margin": Case(1.0, first), "centring": Case(0.5, first)}

SAMPLED = {"objective.answers": "sampled", "objective.max_completion_length": 4}
DISTILL = {
    "teacher": Case("@/other", first),
    "teacher_storage": Case("nf4", first, needs="bitsandbytes"),
    "answers": Case("sampled", first, {"objective.teacher": "@/other"}),
    "divergence": Case("reverse_kl", first, {"objective.teacher": "@/other"}),
    "beta": Case(0.2, first, {"objective.teacher": "@/other", "objective.divergence": "jsd"}),
    "temperature": Case(2.0, first, {"objective.teacher": "@/other"}),
    "max_completion_length": Case(3, first, {**SAMPLED, "objective.teacher": "@/other"}),
}

TABLES = {"preference": PREFERENCE, "policy": POLICY, "classify": CLASSIFY, "reward": REWARD, "distill": DISTILL}
CASES = {f"objective.{kind}.{name}": case for kind, table in TABLES.items() for name, case in table.items()}

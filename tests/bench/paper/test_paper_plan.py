from dataclasses import replace

import pytest

from bench.paper.plan import QUICK, Cell, Plan, fingerprints, graph, needs, wanted

PLAN = Plan(
    seeds=(0, 1, 2),
    annotations=400,
    language_shares=(0.25, 0.5, 0.75, 1.0),
    binary_shares=(0.25, 0.5, 0.75, 1.0),
)


def test_a_full_run_has_every_method_at_the_same_number_of_annotations_for_each_seed() -> None:
    plan = PLAN
    at_par = {(cell.kind, cell.seed) for cell in wanted(plan) if cell.annotations == 400 and cell.round == 1}
    methods = ["dpo", "ppo", "grpo", "best-of-n", "llf-dpo", "llf-ppo", "llf-grpo", "llf-best-of-n"]
    assert at_par == {(method, seed) for method in methods for seed in (0, 1, 2)}
    language = [cell.annotations for cell in wanted(plan) if cell.kind == "llf-dpo" and cell.seed == 0]
    assert sorted(set(language)) == [100, 200, 300, 400]
    assert max(cell.round for cell in wanted(plan)) == 4
    assert len(wanted(plan)) == len(set(wanted(plan)))
    assert len({cell.id for cell in graph(plan, wanted(plan))}) == len(graph(plan, wanted(plan)))


def test_methods_share_answers_reward_model_and_critic_of_their_seed() -> None:
    plan = PLAN
    cells = list(graph(plan, wanted(plan)))
    ids = {cell.id: cell for cell in cells}
    roles = {role: one.id for role, one in needs(plan, ids["llf-ppo.n400.s1"]).items()}
    shared = {"answers": "answers.n400.s1", "critic": "critic.n400.s1", "llf-reward": "llf-reward.n400.s1"}
    assert roles == {"model": "model.n0.s0", **shared}
    assert needs(plan, ids["ppo.n400.s1"])["reward"] == needs(plan, ids["grpo.n400.s1"])["reward"]
    assert needs(plan, ids["llf-dpo.n100.s1"])["answers"].id == "answers.n400.s1"  # the first hundred of the same
    assert [cell.kind for cell in cells if cell.seed == 1].count("answers") == 1 + 3  # of the base, of three rounds


def test_all_seeds_begin_with_one_model_and_answer_prompts_beyond_the_annotated_ones() -> None:
    cells = graph(PLAN, wanted(PLAN))
    assert {roles["model"].id for cell, roles in cells.items() if cell.kind != "model"} == {"model.n0.s0"}
    assert {(cell.annotations, cell.prompts) for cell in cells if cell.kind == "answers"} == {(400, 640)}


def test_a_later_round_begins_where_the_one_before_ended() -> None:
    plan = PLAN
    third = Cell("llf-dpo", 0, 400, round=3, line="llf-dpo", evaluate=100)
    roles = {role: one.id for role, one in needs(plan, third).items()}
    assert roles == {
        "answers": "llf-dpo.answers.n400.s0.r3",
        "critic": "llf-dpo.critic.n400.s0.r3",
        "pairs": "llf-dpo.pairs.n400.s0.r3",
        "model": "model.n0.s0",
        "policy": "llf-dpo.n400.s0.r2",
        "earlier": "llf-dpo.pairs.n400.s0.r2",
    }
    second = needs(plan, needs(plan, third)["critic"])["previous"]
    assert second.id == "llf-dpo.critic.n400.s0.r2"
    assert needs(plan, second)["previous"].id == "critic.n400.s0"  # the one that methods share
    assert needs(plan, second)["policy"].id == "llf-dpo.n400.s0"


@pytest.mark.parametrize("plan", [PLAN, QUICK], ids=["full", "quick"])
def test_what_is_needed_comes_first(plan: Plan) -> None:
    before: set[Cell] = set()
    for cell, roles in graph(plan, wanted(plan)).items():
        assert before.issuperset(roles.values())
        before.add(cell)


def test_a_result_is_stale_when_what_it_builds_on_has_changed() -> None:
    plan = replace(PLAN, seeds=(0,))
    cells = graph(plan, wanted(plan))
    old, new = fingerprints(cells, "weights"), fingerprints(cells, "other weights")
    assert set(old.values()).isdisjoint(new.values())
    other = graph(replace(plan, evaluate=50), wanted(replace(plan, evaluate=50)))
    now = {cell.id: value for cell, value in fingerprints(other, "weights").items()}
    then = {cell.id: value for cell, value in old.items()}
    assert now["critic.n400.s0"] == then["critic.n400.s0"]  # shared work has no held-out prompts
    assert now["llf-dpo.n400.s0"] != then["llf-dpo.n400.s0"]
    assert now["llf-dpo.critic.n400.s0.r2"] != then["llf-dpo.critic.n400.s0.r2"]  # builds on that policy


def test_a_cell_survives_its_json() -> None:
    cell = Cell("llf-dpo", 3, 40, 0, 2, "llf-dpo", 9, (("dpo_epochs", "3"), ("dpo_lr", "1e-4")))
    assert Cell.from_json(cell.to_json()) == cell


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"methods": ("dop",)}, "no such method: dop"),
        ({"ablated": ("dpo",)}, "dpo has no binary counterpart"),
        ({"seeds": ()}, "needs a seed"),
        ({"evaluate": 0}, "at least one"),
        ({"prompts": 399}, "400 annotations of 399 prompts"),
        ({"language_shares": (-0.5, 1.0)}, "0 or more"),
        ({"binary_shares": (0.0, 1.0)}, "above 0"),
    ],
)
def test_a_wrong_plan_says_what_is_wrong(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(PLAN, **change)  # type: ignore[arg-type]

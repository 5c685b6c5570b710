"""Where to cut and where to run: profiles in, plans with predictions out. Pure.

    plan(graph, profiles, links, policy, evidence, codecs=...)        choose.py     the best plan, or the binding limit
    plan_levels(search, evidence_by_domain), recommend(search)        levels.py     seven levels; collaborate or not
    baselines(search), explain(plan), level_cells(rows)               baselines.py, explain.py
    plan_map(search), start(...), step(state, observation)            plan_map.py, replan.py
    measure_exits(logits, labels)                                     exits.py      evidence rows for a version

`make_search(...)` takes the arguments of `plan` and is what levels, maps and replanning work on. `planner.py` is the
contract of a planner, `planners/` has one file each; `placement/` solves the chain planner's inner problem; `moves/`
has what makes other plans from a plan.
"""

"""The same functions under a virtual clock, and the fleet that is emulated with real processes.

    run = simulate(load_toml("job.toml", JobFile))           # simulate.py: rounds in virtual time
    results = simulate_domains(job)                          # domain_pool.py: cloud, hierarchical, edge, device

`rounds.py` holds what both protocols share, `synchronous.py` and `hierarchical.py` drive the steps of
`training/protocols`; `emulated.py` and `processes.py` start agents behind shaped links.
"""

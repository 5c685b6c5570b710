"""The same functions under a virtual clock, and the fleet that is emulated with real processes.

    run = simulate(load_toml("job.toml", JobFile))           # simulate.py: rounds in virtual time
    results = simulate_domains(job)                          # domain_pool.py: cloud, federated, edge, device

`virtual_run.py` drives every role of any protocol under `agenda.py`, `virtual_clients.py` does the local work of
an instant in one call; `emulated/` starts agents behind shaped links.
"""

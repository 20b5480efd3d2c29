"""Chaos: runs go on while workers, supervisors and the server are killed, frozen and restarted, as a seed says.

python -m benchmarks.chaos --seconds 180 --seed 7 --runs 200 --phases 10 --workers 6
"""

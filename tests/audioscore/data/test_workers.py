import subprocess
import sys

import psutil

STARTS = """
import multiprocessing, time
from audioscore.data.audio_checks import start_workers
pool = start_workers(2)
pool.submit(abs, -1).result()
pool.submit(time.sleep, 600)
pool.submit(abs, -1).result()
print(*[process.pid for process in multiprocessing.active_children()], flush=True)
time.sleep(600)
"""


def test_idle_and_busy_workers_end_when_their_parent_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [psutil.Process(int(number)) for number in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    try:
        assert len(workers) == 2
        assert psutil.wait_procs(workers, timeout=30)[1] == []
    finally:
        for worker in workers:
            if worker.is_running():
                worker.kill()

from treadle import step
from treadle import parallel_map

@step
def all_parts(parts: List):
    return parallel_map(press, parts, num_workers=4)

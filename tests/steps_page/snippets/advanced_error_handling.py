from treadle import step
from treadle import retry, on_failure, CircuitBreaker

def nothing_new():
    return {"status": "no news"}

@step
@retry(max_attempts=3, backoff=2.0)
@on_failure(nothing_new)
@CircuitBreaker(failure_threshold=5)
def news():
    return newsroom.get_data()

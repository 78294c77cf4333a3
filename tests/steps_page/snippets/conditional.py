from treadle import step
from treadle import when, unless

@step
@when(lambda x: x > 100)
def large_only(data):
    ...

@step
@unless(lambda x: x is None)
def if_any(data):
    ...

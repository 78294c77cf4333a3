from treadle import step

@step(outputs=["gapless"])
def without_gaps(rows):
    ...

@step(outputs=["data"])
def process(data):
    ...

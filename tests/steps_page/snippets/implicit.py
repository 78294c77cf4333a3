from treadle import step

@step
def clean(data):
    return process(data)

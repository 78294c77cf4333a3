from treadle import step

@step(cache="code_hash")
def summed_up(data):
    return sum_up(data)

@step(cache="input_hash")
def prepared(data, settings):
    return clean(data, settings)

@step(cache=False)
def newest():
    return api.fetch()

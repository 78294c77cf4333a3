from treadle import step

@step(outputs=["data"])
def numbers():
    return [1, 2, 3]

@step(outputs=["marks"])
def letters():
    return ["a", "b", "c"]

@step(inputs=["data", "marks"], outputs=["pairs"])
def pair(data, marks):
    return list(zip(data, marks))

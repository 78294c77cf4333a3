from treadle import step

@step(outputs=["result"])
def doubled(number):
    tidied = number * 2
    return tidied

from treadle import step

@step
def twice(data):
    return [x * 2 for x in data]

@step
def doubled_and_counted(data):
    global count_of_calls
    count_of_calls += 1
    return [x * 2 for x in data]

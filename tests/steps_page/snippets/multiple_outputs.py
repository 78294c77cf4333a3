from treadle import step

@step(outputs=["first_part", "second_part"])
def halve(data, part=0.8):
    middle = int(len(data) * part)
    return data[:middle], data[middle:]

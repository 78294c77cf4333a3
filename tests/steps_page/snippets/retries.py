from treadle import step

@step(retry=3)
def asked_elsewhere():
    response = requests.get(API_URL)
    return response.json()

@step(timeout=300)
def takes_long():
    return work_long()

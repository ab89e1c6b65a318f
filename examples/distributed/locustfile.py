"""A locustfile for load from several machines.

    locust -f examples/distributed/locustfile.py --headless --master --expect-workers 2 -H 127.0.0.1:9999
    locust -f examples/distributed/locustfile.py --worker          # twice; elsewhere with --master-host

Options of the master override the plan, as in --greeter-rate 5k -t 30s --greeter-json run.json.
"""

from greeter.loadtest.locust import GreeterUser


class Canary(GreeterUser):
    host = "127.0.0.1:9999"
    plan = {"rate": 200, "duration": 2, "expect": "Thank you", "thresholds": ["errors:rate<1%"]}

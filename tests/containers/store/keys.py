"""What SeaweedFS offers and Swift spells otherwise: a user named by AWS_ACCESS_KEY_ID alone, and a health check at /healthz."""

import os

from swift.common.middleware.tempauth import TempAuth
from swift.common.swob import Request, Response


class Keys(TempAuth):
    def __init__(self, app, conf):
        super().__init__(app, conf)
        (user,) = self.users.values()
        self.users[os.environ["AWS_ACCESS_KEY_ID"]] = {**user, "key": os.environ["AWS_SECRET_ACCESS_KEY"]}


def keys(global_conf, **local_conf):
    return lambda app: Keys(app, {**global_conf, **local_conf})


def health(global_conf, **local_conf):
    def wrap(app):
        def answer(env, start_response):
            if env["PATH_INFO"] == "/healthz":
                return Response(request=Request(env), body=b"ok")(env, start_response)
            return app(env, start_response)

        return answer

    return wrap

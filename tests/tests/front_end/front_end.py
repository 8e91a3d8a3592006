"""Asks as the original's front end does, for the tests: one connection a command, an exclusive queue named by the broker,
confirms, a mandatory message, and the first delivery is the answer, whatever it says it belongs to.

Each line on standard input is a command, {"to": NODE, "body": TEXT}; each line on standard output is what came of it. With
"external" as the fourth argument it logs in by its certificate, otherwise as the user that hosts may share; a fifth one signs every
message, which the original does not do.
"""

import json
import random
import ssl
import sys
import time

import pika

HOST, PORT, PKI, LOGIN = sys.argv[1:5]
SIGNED_BY = sys.argv[5] if len(sys.argv) > 5 else None
USER, PASSWORD = "img-storage", "for the tests"


def connect():
    tls = ssl.create_default_context(cafile=PKI + "/ca-cert.pem")
    tls.load_cert_chain(PKI + "/client-cert.pem", PKI + "/client-key.pem")
    credentials = pika.credentials.ExternalCredentials() if LOGIN == "external" else pika.PlainCredentials(USER, PASSWORD)
    parameters = pika.ConnectionParameters(
        HOST, int(PORT), "img-storage", credentials, ssl_options=pika.SSLOptions(tls, HOST), heartbeat=0
    )
    return pika.BlockingConnection(parameters)


def ask(to, body):
    connection = connect()
    try:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True, auto_delete=True).method.queue
        channel.confirm_delivery()
        properties = pika.BasicProperties(
            app_id="rocks.RabbitMQClient",
            message_id=str(random.getrandbits(64)),
            reply_to=queue,
            delivery_mode=1,
            timestamp=int(time.time()),
            type="",
            user_id=SIGNED_BY,
        )
        try:
            channel.basic_publish("rocks.vm-manage", to, body.encode("utf-8"), properties, mandatory=True)
        except pika.exceptions.UnroutableError:
            return {"unroutable": True}
        for _, properties, answer in channel.consume(queue, auto_ack=True):
            known = {name: getattr(properties, name) for name in ("app_id", "delivery_mode", "message_id", "content_type", "timestamp")}
            return {"answer": answer.decode("utf-8"), "properties": known}
    finally:
        connection.close()


for line in sys.stdin:
    command = json.loads(line)
    print(json.dumps(ask(command["to"], command["body"])), flush=True)

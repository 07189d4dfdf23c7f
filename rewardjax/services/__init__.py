from rewardjax.services.client import Client as Client
from rewardjax.services.endpoint import Answer as Answer
from rewardjax.services.endpoint import Counters as Counters
from rewardjax.services.endpoint import Messages as Messages
from rewardjax.services.endpoint import RequestRefused as RequestRefused
from rewardjax.services.endpoint import ServiceConfig as ServiceConfig
from rewardjax.services.endpoint import ServiceUnavailable as ServiceUnavailable

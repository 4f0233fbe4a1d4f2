import type { IncomingMessage, ServerResponse } from 'node:http';
import { getRequestListener, RequestError, type HttpBindings } from '@hono/node-server';
import { asRouterError, RouterError } from '../errors.js';
import type { App } from './app.js';
import { JSON_TYPE } from './json-answer.js';
import type { RequestTracer } from './request-trace.js';
import { sendError } from './send-error.js';

/** Takes a request that Node has read the headers of, and sees to its answer. */
export type Listener = (incoming: IncomingMessage, outgoing: ServerResponse) => void;

export interface AppListenerOptions {
  readonly app: App;
  readonly tracer: RequestTracer;
}

/** Has the app answer requests; one that it cannot be given, because it has no URL, is refused. */
export function appListener({ app, tracer }: AppListenerOptions): Listener {
  // The listener does not tell its error handler which request it is about. It reads a request in the same turn in which
  // it is called, though, and one listener for all is cheaper than one for each.
  let latest: ServerResponse | undefined;
  const listener = getRequestListener(
    (request, bindings) => {
      const { incoming, outgoing } = bindings as HttpBindings;
      return app.fetch(request, { incoming, outgoing, trace: tracer.begin(incoming, outgoing) });
    },
    {
      overrideGlobalObjects: false,
      // For requests without a Host header.
      hostname: 'localhost',
      errorHandler: (thrown) => {
        if (!(thrown instanceof RequestError) || latest === undefined)
          return toResponse(asRouterError(thrown));
        refuse(
          tracer,
          latest,
          new RouterError('request_malformed', `request cannot be read: ${thrown.message}`),
        );
        return undefined;
      },
    },
  );
  return (incoming, outgoing) => {
    latest = outgoing;
    void listener(incoming, outgoing);
  };
}

/** Refuses requests with an `Expect` that is not `100-continue` (RFC 9110, section 10.1.1). */
export function refuseExpectation(tracer: RequestTracer): Listener {
  return (_incoming, outgoing) =>
    refuse(
      tracer,
      outgoing,
      new RouterError('expectation_unknown', '100-continue is the only Expect that can be met'),
    );
}

/** Answers a request that does not get to the app, with a trace like any other. */
function refuse(tracer: RequestTracer, outgoing: ServerResponse, error: RouterError): void {
  const { req: incoming } = outgoing;
  tracer.begin(incoming, outgoing).fail(error);
  // The parser has come to the end of the headers; whether that is the end of the request is known when it has gone on.
  setImmediate(() => sendError(incoming, outgoing, error));
}

function toResponse(error: RouterError): Response {
  return new Response(JSON.stringify(error), {
    status: error.status,
    headers: { 'Content-Type': JSON_TYPE },
  });
}

/** The helper, a llama-server without a model, hangs while it is asked for something. */
import { expect, it } from 'vitest';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { alive, canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange } from '../helpers/raw-http.js';
import { argvOf, childrenOf, startRealSupervisor } from '../helpers/real-llama-server.js';
import { wireError } from '../http/serve-fakes.js';

it.runIf(canListProcesses)(
  'a frozen helper is noticed, its clients are told or served by the next one',
  async () => {
    const supervisor = await startRealSupervisor({ args: ['--tools', 'get_info'] });
    const { url } = supervisor;
    const helperPid = (): number | undefined =>
      childrenOf(supervisor).find(({ pid }) => !argvOf(pid).includes('--model'))?.pid;
    const post = { ...jsonPost({ tool: 'get_info', params: {} }) };
    const frozen = await eventually('the helper runs', helperPid);
    process.kill(frozen, 'SIGSTOP');

    const used = rawExchange(`${url}/tools`, post);
    const looked = rawExchange(`${url}/tools`);
    const told = await withDeadline('who used it is told', used.ended, 60_000);
    const { message, reason } = wireError(told, 502, 'server_error');
    expect(reason).toBe('child_gone');
    expect(message).toContain('hung (its /health was not answered twice in a row)');
    expect((await withDeadline('who looked is served', looked.ended, 30_000)).status).toBe(200);
    expect(alive(frozen)).toBe(false);
    expect(supervisor.log().find(({ msg }) => String(msg).startsWith('the helper has ended'))).toMatchObject({
      pid: frozen,
      message: expect.stringContaining('hung') as string,
    });

    const next = await eventually('the next one runs', helperPid);
    expect(next).not.toBe(frozen);
    const again = await withDeadline('it is used', rawExchange(`${url}/tools`, post).ended, 30_000);
    expect(again.status).toBe(200);
  },
);

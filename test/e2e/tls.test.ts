/** HTTPS in front, with the real llama-server on plain loopback behind. */
import { copyFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { Agent } from 'node:https';
import { connect } from 'node:net';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { beforeAll, describe, expect, it } from 'vitest';
import { type Certificate, makeCertificate, openssl, tlsArgs } from '../helpers/certificate.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import {
  counting,
  nameAnswer,
  piecesOf,
  sayingItsName,
  writeModels,
} from '../helpers/known-answer-models.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest, type RawRequest } from '../helpers/raw-http.js';
import { argvOf, childrenOf, startRealSupervisor } from '../helpers/real-llama-server.js';
import { sseData } from '../helpers/sse.js';
import { question } from '../helpers/supervisor-client.js';
import { launchSupervisor, type SupervisorProcess } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';
import { OracleHome, spawnNative } from './native-oracle.js';

/** A client that trusts this certificate and no other. */
function trusting({ cert }: Certificate, socketPath?: string): Agent {
  return new Agent({ ca: readFileSync(cert), ...(socketPath === undefined ? {} : { socketPath }) });
}

/** The common name that a new connection is shown. */
async function shownName(port: number): Promise<string> {
  const socket = connectTls({ port, host: '127.0.0.1', rejectUnauthorized: false });
  atEndOfTest(() => void socket.destroy());
  const name = new Promise<string>((resolve, reject) => {
    socket.once('secureConnect', () => resolve(String(socket.getPeerCertificate().subject.CN)));
    socket.once('error', reject);
  });
  return withDeadline('the handshake', name, 5_000).finally(() => socket.destroy());
}

describe.each([
  ['the command line', (certificate: Certificate) => ({ args: tlsArgs(certificate), env: {} })],
  [
    'the environment',
    ({ key, cert }: Certificate) => ({
      args: [],
      env: { LLAMA_ARG_SSL_KEY_FILE: key, LLAMA_ARG_SSL_CERT_FILE: cert },
    }),
  ],
])('with key and certificate from %s', (_where, given) => {
  const certificate = makeCertificate();
  let supervisor: SupervisorProcess;
  const ask = (path: string, request: RawRequest = {}) =>
    rawExchange(supervisor.url + path, { ...request, agent: trusting(certificate) });

  beforeAll(async () => {
    const models = await writeModels({ alpha: sayingItsName('alpha'), counter: counting(300) });
    const { args, env } = given(certificate);
    supervisor = await startRealSupervisor({ args: ['--models-dir', models, ...args], env });
  });

  it('clients are served over HTTPS: a list, a chat and a stream', async () => {
    expect(supervisor.url).toBe(`https://127.0.0.1:${supervisor.port}`);
    const list = await ask('/v1/models').ended;
    expect(JSON.parse(list.body.toString())).toMatchObject({ data: [{ id: 'alpha' }, { id: 'counter' }] });

    const answer = await ask('/v1/chat/completions', jsonPost(question('alpha'))).ended;
    expect(JSON.parse(answer.body.toString())).toMatchObject({
      choices: [{ message: { content: nameAnswer('alpha') } }],
    });

    const body = { ...question('counter'), stream: true };
    const stream = await ask('/v1/chat/completions', jsonPost(body)).ended;
    const data = sseData(stream.body);
    expect(data.pop()).toBe('[DONE]');
    const pieces = data.flatMap((item) => {
      const { choices } = JSON.parse(item) as { choices: { delta: { content?: string | null } }[] };
      return choices[0]?.delta.content ?? [];
    });
    expect(pieces).toEqual(piecesOf(counting(300)));
  });

  // Elsewhere a child's command line cannot be read.
  it.skipIf(!canListProcesses)('the child speaks plain HTTP on loopback', async () => {
    await ask('/v1/chat/completions', jsonPost(question('alpha'))).ended;
    const children = childrenOf(supervisor);
    expect(children).not.toEqual([]);
    for (const { pid } of children) {
      const argv = argvOf(pid);
      expect(argv.filter((arg) => arg.startsWith('--ssl'))).toEqual([]);
      const port = argv[argv.indexOf('--port') + 1] ?? '';
      expect((await rawRequest(`http://127.0.0.1:${port}/health`)).status).toBe(200);
    }
  });

  it('a request in plain HTTP is cut off at once', async () => {
    const socket = connect(supervisor.port, '127.0.0.1');
    const pieces: Buffer[] = [];
    socket.on('data', (piece: Buffer) => pieces.push(piece));
    socket.on('error', () => undefined);
    const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    socket.write('GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n');
    await withDeadline('the connection is closed', closed, 5_000);
    expect(Buffer.concat(pieces).toString('latin1')).not.toContain('HTTP/1.1 200');
    await expect(rawRequest(`http://127.0.0.1:${supervisor.port}/health`)).rejects.toThrow();
    expect((await ask('/health').ended).status).toBe(200);
  });
});

it('a Unix socket speaks TLS, too, as that of the native router does', async ({ skip }) => {
  const certificate = makeCertificate();
  const directory = tempDir();
  const healthThrough = async (path: string) =>
    (await rawRequest('https://localhost/health', { agent: trusting(certificate, path) })).status;

  const ours = join(directory, 'ours.sock');
  await startRealSupervisor({ args: ['--host', ours, ...tlsArgs(certificate)] });
  expect(await healthThrough(ours)).toBe(200);

  const theirs = join(directory, 'native.sock');
  const { child, output } = spawnNative(new OracleHome(), {
    args: ['--host', theirs, ...tlsArgs(certificate)],
  });
  await eventually(
    'the native router serves or ends',
    () => output().includes('listening on') || child.exitCode !== null,
    { deadlineMs: 30_000 },
  );
  if (output().includes('built without SSL')) skip('this llama-server was built without OpenSSL');
  expect(await healthThrough(theirs)).toBe(200);
});

describe('a renewed certificate', () => {
  let files: Certificate;
  let supervisor: SupervisorProcess;
  const put = (from: Certificate) => {
    copyFileSync(from.key, files.key);
    copyFileSync(from.cert, files.cert);
  };
  const logged = (message: string) => supervisor.log().filter(({ msg }) => msg === message);

  beforeAll(async () => {
    files = makeCertificate('first');
    const models = await writeModels({ counter: counting(800) });
    supervisor = await startRealSupervisor({ args: ['--models-dir', models, ...tlsArgs(files)] });
  });

  it('is shown to new clients after SIGHUP, while answers of older ones go on', async () => {
    expect(await shownName(supervisor.port)).toBe('first');
    const body = { ...question('counter'), stream: true };
    const stream = rawExchange(`${supervisor.url}/v1/chat/completions`, {
      ...jsonPost(body),
      agent: trusting(files),
    });
    await stream.head;
    put(makeCertificate('second'));
    expect(await shownName(supervisor.port)).toBe('first');
    process.kill(supervisor.pid, 'SIGHUP');
    await eventually('it was read again', () => logged('TLS certificate read again').length === 1);
    expect(await shownName(supervisor.port)).toBe('second');
    expect(logged('TLS certificate read again')[0]).toHaveProperty('validUntil');
    const { complete, body: bytes } = await stream.ended;
    expect(complete).toBe(true);
    expect(sseData(bytes).at(-1)).toBe('[DONE]');
  });

  it('is shown after ?reload=1, too', async () => {
    const renewed = makeCertificate('third');
    const before = trusting(files);
    put(renewed);
    expect((await rawRequest(`${supervisor.url}/models?reload=1`, { agent: before })).status).toBe(200);
    expect(await shownName(supervisor.port)).toBe('third');
  });

  it('that is no pair changes nothing, with a warning that says what is wrong', async () => {
    put(makeCertificate('fourth'));
    copyFileSync(makeCertificate('fifth').key, files.key);
    const name = await shownName(supervisor.port);
    process.kill(supervisor.pid, 'SIGHUP');
    const [line] = await eventually('the warning', () => {
      const lines = logged('the TLS certificate stays as it was');
      return lines.length > 0 && lines;
    });
    expect(line?.['reason']).toMatch(/is not the key of --ssl-cert-file/);
    expect(await shownName(supervisor.port)).toBe(name);
  });
});

describe('a start is refused, with the file and the remedy,', () => {
  const good = makeCertificate();
  const other = makeCertificate();
  const path = (name: string) => join(good.key, '..', name);

  it.each<[what: string, key: string, cert: string, message: RegExp]>([
    [
      'for a key that is not there',
      path('no-key.pem'),
      good.cert,
      /--ssl-key-file: '.*no-key\.pem' cannot be read \(ENOENT\); name a PEM file/,
    ],
    [
      'for a certificate that is not there',
      good.key,
      path('no-cert.pem'),
      /--ssl-cert-file: '.*no-cert\.pem' cannot be read \(ENOENT\); name a PEM file/,
    ],
    ['for a directory', path('..'), good.cert, /--ssl-key-file: '.*' cannot be read \(EISDIR\)/],
    [
      'for a key that is not that of the certificate',
      other.key,
      good.cert,
      /--ssl-key-file '.*' is not the key of --ssl-cert-file '.*'; name the two that were made together/,
    ],
    [
      'for a certificate that is no PEM',
      good.key,
      path('cert.der'),
      /--ssl-cert-file: '.*cert\.der' is no certificate in PEM/,
    ],
    ['for a key that is text', path('text'), good.cert, /--ssl-key-file: '.*text' is no private key in PEM/],
    [
      'for a key with a passphrase',
      path('locked.pem'),
      good.cert,
      /--ssl-key-file: '.*locked\.pem' is no private key in PEM, or one with a passphrase/,
    ],
    ['for files in the wrong order', good.cert, good.key, /--ssl-key-file: '.*cert\.pem' is no private key/],
  ])('%s', async (_what, key, cert, message) => {
    if (!existsSync(path('text'))) {
      writeFileSync(path('text'), 'no key');
      openssl('x509', '-in', good.cert, '-outform', 'der', '-out', path('cert.der'));
      openssl('ec', '-in', good.key, '-aes256', '-passout', 'pass:secret', '-out', path('locked.pem'));
    }
    const launched = launchSupervisor({ args: tlsArgs({ key, cert }) });
    const { code } = await withDeadline('the start is refused', launched.exited, 20_000);
    expect(code, launched.output()).toBe(1);
    expect(launched.output()).toMatch(message);
  });
});

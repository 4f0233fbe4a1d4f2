import { expect, test } from 'vitest';
import { childEnvironment, helperEnvironment } from '../../../src/instance/child-environment.js';

test.each([
  ['LLAMA_API_KEY', 'the key is that of the run'],
  ['LLAMA_ARG_API_KEY_FILE', "the clients' keys would open the child"],
  ['LLAMA_ARG_MODELS_DIR', 'it would make the child a router'],
  ['LLAMA_ARG_MODELS_PRESET', 'it would make the child a router'],
  ['LLAMA_ARG_MODELS_MAX', 'it would make the child a router'],
  ['LLAMA_ARG_MODELS_AUTOLOAD', 'it would make the child a router'],
  ['LLAMA_ARG_NO_MODELS_AUTOLOAD', 'it would make the child a router'],
  ['LLAMA_SERVER_CHILD_MODE', 'it would make the child a download worker'],
  ['LLAMA_ARG_LOG_FILE', 'all children would write one file'],
  ['AIP_MODE', 'it would make the child a Vertex server'],
  ['AIP_HTTP_PORT', 'it would move the port'],
  ['LLAMA_SUPERVISOR_QUEUE_MAX', 'it is ours'],
  ['LLAMA_SERVER_ROUTER_PORT', 'only the instance makes a child of it'],
  ['LLAMA_ARG_REUSE_PORT', 'it would share its port with strangers'],
  ['LLAMA_ARG_TOOLS', 'tools are the helper’s'],
  ['LLAMA_ARG_AGENT', 'tools are the helper’s'],
  ['LLAMA_ARG_NO_AGENT', 'tools are the helper’s'],
])('%s does not reach a child: %s', (name) => {
  expect(childEnvironment({ [name]: 'x', PATH: '/bin' })).not.toHaveProperty(name);
});

test('TLS files are set to empty, which overrides the config file that a child reads itself', () => {
  const environment = childEnvironment({
    LLAMA_ARG_SSL_KEY_FILE: '/etc/key.pem',
    LLAMA_ARG_SSL_CERT_FILE: '/etc/cert.pem',
  });
  expect(environment).toMatchObject({ LLAMA_ARG_SSL_KEY_FILE: '', LLAMA_ARG_SSL_CERT_FILE: '' });
});

test('MCP servers and a runtime for tools are set to empty: each child would start them again', () => {
  const names = ['LLAMA_ARG_MCP_SERVERS_CONFIG', 'LLAMA_ARG_MCP_SERVERS_JSON', 'LLAMA_ARG_TOOLS_RUNTIME'];
  const given = Object.fromEntries(names.map((name) => [name, 'x']));
  for (const environment of [childEnvironment(given), childEnvironment({})]) {
    expect(environment).toMatchObject(Object.fromEntries(names.map((name) => [name, ''])));
  }
});

test('the repository of remote presets is set to empty: a child with a model of its own must not load it', () => {
  expect(childEnvironment({ LLAMA_ARG_HF_REPO: 'me/presets' })['LLAMA_ARG_HF_REPO']).toBe('');
});

test('an empty option does not reach a child, which would not start with it', () => {
  expect(childEnvironment({ LLAMA_ARG_PORT: '', PATH: '' })).not.toHaveProperty('LLAMA_ARG_PORT');
  expect(childEnvironment({ PATH: '' })).toHaveProperty('PATH', '');
});

test('an empty variable of a negated name reaches a child: it is its presence that turns the option off', () => {
  expect(childEnvironment({ LLAMA_ARG_NO_WARMUP: '' })).toHaveProperty('LLAMA_ARG_NO_WARMUP', '');
});

test('metrics are on, also where the environment says otherwise', () => {
  expect(childEnvironment({})['LLAMA_ARG_ENDPOINT_METRICS']).toBe('1');
  expect(childEnvironment({ LLAMA_ARG_ENDPOINT_METRICS: '0' })['LLAMA_ARG_ENDPOINT_METRICS']).toBe('1');
});

test('everything else is kept: devices, caches, options of the model and unknown names', () => {
  const kept = {
    PATH: '/usr/bin',
    HOME: '/home/someone',
    LD_LIBRARY_PATH: '/opt/cuda/lib64',
    CUDA_VISIBLE_DEVICES: '1',
    GGML_VK_VISIBLE_DEVICES: '0',
    HF_HOME: '/models/hf',
    HF_TOKEN: 'hf_x',
    LLAMA_CACHE: '/models',
    LLAMA_ARG_CTX_SIZE: '8192',
    LLAMA_ARG_N_GPU_LAYERS: '99',
    // Names that only resemble those that are removed.
    LLAMA_ARG_MODEL_ALIAS: 'x',
    MY_AIP_MODE: 'x',
    LLAMA_API_KEYS: 'x',
    SOMETHING_ELSE: '',
  };
  expect(childEnvironment(kept)).toMatchObject(kept);
});

test('the given environment is not changed', () => {
  const given = { LLAMA_API_KEY: 'x', PATH: '/bin' };
  childEnvironment(given);
  expect(given).toEqual({ LLAMA_API_KEY: 'x', PATH: '/bin' });
});

test('HTTP threads are enough for a burst of long streams, unless the user chose their number', () => {
  expect(childEnvironment({})['LLAMA_ARG_THREADS_HTTP']).toBe('64');
  expect(childEnvironment({ LLAMA_ARG_THREADS_HTTP: '8' })['LLAMA_ARG_THREADS_HTTP']).toBe('8');
});

test('of the options in the environment the helper gets those that it obeys, and no other', () => {
  const obeyed = {
    LLAMA_ARG_TOOLS: 'all',
    LLAMA_ARG_TOOLS_RUNTIME: 'podman:alpine',
    LLAMA_ARG_MCP_SERVERS_CONFIG: 'mcp.json',
    LLAMA_ARG_MCP_SERVERS_JSON: '{}',
    LLAMA_ARG_AGENT: '1',
    LLAMA_ARG_NO_AGENT: '',
    LLAMA_ARG_UI: '1',
    LLAMA_ARG_UI_CONFIG: '{}',
    LLAMA_ARG_UI_CONFIG_FILE: 'ui.json',
    LLAMA_ARG_UI_MCP_PROXY: '1',
    LLAMA_ARG_STATIC_PATH: 'site',
    LLAMA_ARG_THREADS_HTTP: '8',
  };
  const others = {
    LLAMA_ARG_CTX_SIZE: '8192',
    LLAMA_ARG_MODELS_MAX: '2',
    LLAMA_ARG_HOST: '0.0.0.0',
    LLAMA_ARG_REUSE_PORT: '1',
    LLAMA_API_KEY: 'k',
    AIP_MODE: 'PREDICTION',
  };
  const plain = { PATH: '/bin', HOME: '/home/someone', HF_TOKEN: 'hf_x', CUDA_VISIBLE_DEVICES: '1' };
  const environment = helperEnvironment({ ...obeyed, ...others, ...plain, LLAMA_CACHE: '/models' }, '/empty');
  expect(environment).toMatchObject({ ...obeyed, ...plain, LLAMA_CACHE: '/empty' });
  for (const name of Object.keys(others)) expect(environment).not.toHaveProperty(name);
});

test('nothing gives the helper a model, a prefix or a certificate, whatever the config files say', () => {
  const names = ['MODEL', 'HF_REPO', 'DOCKER_REPO', 'MODELS_DIR', 'MODELS_PRESET', 'API_PREFIX'];
  const overridden = [...names, 'SSL_KEY_FILE', 'SSL_CERT_FILE'].map((name) => `LLAMA_ARG_${name}`);
  const given = Object.fromEntries(overridden.map((name) => [name, 'x']));
  for (const environment of [helperEnvironment(given, '/empty'), helperEnvironment({}, '/empty')]) {
    expect(environment).toMatchObject(Object.fromEntries(overridden.map((name) => [name, ''])));
  }
});

test('a child that aborts does not have a debugger read its stack first, unless the user wants it', () => {
  for (const environmentOf of [
    childEnvironment,
    (env: NodeJS.ProcessEnv) => helperEnvironment(env, '/empty'),
  ]) {
    expect(environmentOf({})['GGML_NO_BACKTRACE']).toBe('1');
    expect(environmentOf({ GGML_NO_BACKTRACE: 'yes' })['GGML_NO_BACKTRACE']).toBe('yes');
    // For a child its presence counts.
    expect(environmentOf({ GGML_NO_BACKTRACE: '' })['GGML_NO_BACKTRACE']).toBeUndefined();
  }
});

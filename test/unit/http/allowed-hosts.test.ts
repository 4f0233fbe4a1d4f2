import { describe, expect, it } from 'vitest';
import { AllowedHosts } from '../../../src/http/allowed-hosts.js';

function allowing(allowedHosts: string[] = [], corsOrigins?: string): AllowedHosts {
  return new AllowedHosts({ allowedHosts, corsOrigins });
}

describe('without options', () => {
  it.each([
    ['localhost', true],
    ['LOCALHOST:8080', true],
    ['localhost.', true],
    ['a.b.localhost:1', true],
    ['127.0.0.1', true],
    ['127.255.3.4:80', true],
    ['[::1]', true],
    ['[::1]:8080', true],
    ['[0:0:0:0:0:0:0:1]', true],
    ['0.0.0.0:8080', true],
    ['[::]:8080', true],
    ['evil.example', false],
    ['localhost.evil.example', false],
    ['evillocalhost', false],
    ['127.0.0.1.evil.example', false],
    ['127.evil.example', false],
    ['128.0.0.1', false],
    ['10.127.0.1', false],
    ['[::2]', false],
    ['[2001:db8::1]', false],
    ['gpu', false],
    ['gpu.lan', false],
    ['', false],
    [':8080', false],
    ['localhost@evil.example', false],
    ['evil.example@localhost', false],
    ['localhost/evil.example', false],
    ['evil.example#localhost', false],
    ['evil.example\\localhost', false],
    ['%6cocalhost', false],
    ['localhost:', false],
    ['localhost:80:80', false],
    ['localhost:evil', false],
    ['local host', false],
    ['::1', false],
    ['[::1', false],
    ['*', false],
  ])('%j: %j', (host, isAllowed) => {
    expect(allowing().includes(host, undefined)).toBe(isAllowed);
  });
});

describe('the address that the connection has come to', () => {
  it.each([
    ['192.168.1.5:8080', '192.168.1.5', true],
    ['192.168.1.5', '::ffff:192.168.1.5', true],
    ['[2001:DB8:0::7]:8080', '2001:db8::7', true],
    ['192.168.1.5', '192.168.1.6', false],
    ['192.168.1.5.evil.example', '192.168.1.5', false],
    ['evil.example', '192.168.1.5', false],
    ['evil.example', undefined, false],
    ['192.168.1.5', '127.0.0.1', false],
  ])('%j on %j: %j', (host, localAddress, isAllowed) => {
    expect(allowing().includes(host, localAddress)).toBe(isAllowed);
  });
});

describe('--allowed-hosts', () => {
  it.each([
    [['gpu-box'], 'gpu-box', true],
    [['gpu-box'], 'GPU-Box:8080', true],
    [['GPU-Box.lan'], 'gpu-box.lan.', true],
    [['gpu-box'], 'gpu-box.lan', false],
    [['gpu-box'], 'a.gpu-box', false],
    [['gpu-box:8080'], 'gpu-box:8080', true],
    [['gpu-box:8080'], 'gpu-box:8081', false],
    [['gpu-box:8080'], 'gpu-box', false],
    // Browsers leave out the port of the scheme.
    [['gpu-box:443'], 'gpu-box', true],
    [['gpu-box:80'], 'gpu-box', true],
    [['gpu-box:80'], 'gpu-box:8080', false],
    [['a', 'b'], 'b', true],
    [['10.0.0.7'], '10.0.0.7:1', true],
    [['2001:db8::7'], '[2001:db8::7]:1', true],
    [['[2001:db8::7]:2'], '[2001:db8::7]:1', false],
    [['bücher.example'], 'xn--bcher-kva.example', true],
    [['*'], 'evil.example', true],
    [['a', '*'], 'evil.example', true],
  ])('%j, %j: %j', (names, host, isAllowed) => {
    expect(allowing(names).includes(host, undefined)).toBe(isAllowed);
  });

  it.each([
    'http://gpu-box',
    'gpu box',
    'gpu-box/ui',
    'gpu-box:port',
    'a@b',
    '[::1',
    '999.1.1.1',
    '*.example',
  ])('of %j says what is wrong with it', (name) => {
    expect(() => allowing(['fine', name])).toThrow(`--allowed-hosts: '${name}' is no host`);
  });
});

describe('hosts of --cors-origins are allowed, too', () => {
  it.each([
    ['https://chat.example', 'chat.example', true],
    ['https://a.example, https://b.example', 'b.example', true],
    ['http://chat.example:3000', 'chat.example:3000', true],
    ['http://chat.example:3000', 'chat.example', false],
    ['*', 'chat.example', false],
    ['localhost', 'chat.example', false],
    ['null', 'null', false],
  ])('%j, %j: %j', (origins, host, isAllowed) => {
    expect(allowing([], origins).includes(host, undefined)).toBe(isAllowed);
  });
});
